"""A whole processor outside long mode: 32-bit protected mode, virtual-8086 mode, real mode.

Every vector's handler is one HLT at HANDLER + 16 * vector, in real mode at 0:HANDLER + vector.
"""

from __future__ import annotations

from typing import Any

from tests.processor.bare import Bare
from tests.processor.long_mode import Watching
from trapline.arch import descriptor as d
from trapline.arch.registers import CR0_PE, CR4_OSFXSR, RFLAGS_VM
from trapline.processor.core import Core
from trapline.processor.memory import Ram
from trapline.processor.segment import fill, fill_real

GDT, IDT, TASK, OTHER_TASK, LDT = 0x1000, 0x2000, 0x4000, 0x5000, 0x6000
CODE, HANDLER, STACK_TOP, DATA, USER_STACK = 0x8000, 0x9000, 0x20000, 0x30000, 0x28000
CODE0, DATA0, CODE3, DATA3 = 0x08, 0x10, 0x1B, 0x23
TASK_A, TASK_B, CALL_GATE, TASK_GATE = 0x28, 0x30, 0x3B, 0x43
CODE16, CONFORMING, DATA16, LDT_SELECTOR = 0x48, 0x50, 0x58, 0x60

_ALL = d.FLAT_LIMIT
DESCRIPTORS = {
    CODE0: d.build_segment(0, _ALL, d.AR_CODE32),
    DATA0: d.build_segment(0, _ALL, d.AR_DATA32),
    CODE3: d.build_segment(0, _ALL, d.with_dpl(d.AR_CODE32, 3)),
    DATA3: d.build_segment(0, _ALL, d.with_dpl(d.AR_DATA32, 3)),
    TASK_A: d.build_segment(TASK, 0x67, d.AR_P | d.SystemType.TSS_BUSY),
    TASK_B: d.build_segment(OTHER_TASK, 0x67, d.AR_P | d.SystemType.TSS_AVAILABLE),
    CODE16: d.build_segment(0, 0xFFFF, d.AR_CODE16),
    CONFORMING: d.build_segment(0, _ALL, d.AR_CODE32 | d.TYPE_CONFORMING),
    DATA16: d.build_segment(0, 0xFFFF, d.AR_DATA16),
    LDT_SELECTOR: d.build_segment(LDT, 0xF, d.AR_LDT),
    CALL_GATE: d.build_gate(d.Gate(CODE0, CODE + 0x100, d.SystemType.CALL_GATE, 3, True))[0],
    TASK_GATE: d.build_gate(d.Gate(TASK_B, 0, d.SystemType.TASK_GATE, 3, True))[0],
}


class Protected:
    """The processor and its memory; `core` is the real thing."""

    def __init__(self, model: str = "sapphire-rapids", engine: str = "interp") -> None:
        self.core = Core(model, Ram(1 << 20), engine=engine)
        self.state, self.bus = self.core.state, self.core.bus
        self.observer = Watching()
        self.core.observer = self.observer
        self.core.msrs.write(0x2FF, 0x806)
        for selector, descriptor in DESCRIPTORS.items():
            self.set_word(GDT + (selector & ~7), descriptor)
        for vector in range(256):
            self.gate(vector)
        self.set_word(TASK + 4, STACK_TOP, 4)
        self.set_word(TASK + 8, DATA0, 4)
        self.set_word(TASK + 0x66, 0x68, 2)  # no I/O bitmap
        self.bus.bytes[HANDLER : HANDLER + 0x1000] = b"\xf4" * 0x1000
        state = self.state
        state.gdtr_base, state.gdtr_limit = GDT, 0x6F
        state.idtr_base, state.idtr_limit = IDT, 0x7FF
        state.ldtr_attributes = d.AR_UNUSABLE
        fill(state, "tr", TASK_A, DESCRIPTORS[TASK_A])
        state.dr6, state.dr7, state.pat = 0xFFFF0FF0, 0x400, 0x0007040600070406
        state.mxcsr, state.fcw, state.cr4 = 0x1F80, 0x37F, CR4_OSFXSR

    word, set_word = Bare.word, Bare.set_word

    def gate(self, vector: int, **changes: Any) -> None:
        values: dict[str, Any] = {
            "selector": CODE0,
            "offset": HANDLER + 16 * vector,
            "type": d.SystemType.INTERRUPT_GATE,
            "dpl": 3,
            "is_present": True,
        }
        self.set_word(IDT + 8 * vector, d.build_gate(d.Gate(**(values | changes)))[0])

    def ring(self, cpl: int, code: bytes, **registers: int) -> Protected:
        """32-bit code in ring 0 or 3, about to run."""
        state = self.state
        state.cr0 = CR0_PE
        code_selector, data = (CODE0, DATA0) if cpl == 0 else (CODE3, DATA3)
        fill(state, "cs", code_selector, DESCRIPTORS[code_selector])
        for name in ("ss", "ds", "es", "fs", "gs"):
            fill(state, name, data, DESCRIPTORS[data])
        state.rsp = STACK_TOP - 0x1000 if cpl == 0 else USER_STACK
        return self._start(cpl, code, registers)

    def virtual_8086(self, code: bytes, **registers: int) -> Protected:
        """Code at 0800:0000 in virtual-8086 mode, about to run."""
        state = self.state
        state.cr0, state.system_flags = CR0_PE, RFLAGS_VM | 2
        for name in ("ss", "ds", "es", "fs", "gs"):
            fill_real(state, name, DATA >> 4)
        fill_real(state, "cs", CODE >> 4)
        state.rsp = 0x800
        return self._start(3, code, {"rip": 0, "system_flags": RFLAGS_VM | 2} | registers)

    def real(self, code: bytes, **registers: int) -> Protected:
        """Code at 0800:0000 in real mode, about to run."""
        state = self.state
        state.cr0 = 0
        for name in ("cs", "ss", "ds", "es", "fs", "gs"):
            descriptor = d.build_segment(0, 0xFFFF, d.AR_CODE16 if name == "cs" else d.AR_DATA16)
            fill(state, name, 0, descriptor)
            fill_real(state, name, (CODE if name == "cs" else DATA) >> 4)
        state.idtr_base, state.idtr_limit = 0, 0x3FF
        for vector in range(256):
            self.set_word(4 * vector, HANDLER + vector, 4)
        state.rsp = 0x800
        return self._start(0, code, {"rip": 0} | registers)

    def _start(self, cpl: int, code: bytes, registers: dict[str, int]) -> Protected:
        state = self.state
        state.rip, state.cpl, state.activity = CODE, cpl, 0
        self.bus.bytes[CODE : CODE + len(code)] = code
        for name, word in registers.items():
            setattr(self.state, name, word)
        self.core.memory.mode_changed()
        self.core.memory.privilege_changed()
        return self

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.core.step()

    @property
    def vector(self) -> int | None:
        """Whose handler comes next."""
        offset = self.state.rip - HANDLER
        if not 0 <= offset < 0x1000:
            return None
        return offset >> 4 if self.state.cr0 & CR0_PE else offset

    def stacked(self, count: int, size: int = 4) -> list[int]:
        """The words on top of the stack."""
        at = self.state.ss_base + self.state.rsp
        return [self.word(at + size * i, size) for i in range(count)]
