"""A whole processor in long mode: descriptor tables, TSS, page tables, code at CPL 0 or 3.

Every vector's handler is one HLT at HANDLER + 16 * vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.processor.bare import FLAT, Bare, Tables
from trapline.arch import descriptor as d
from trapline.arch.paging import PTE_P, PTE_W
from trapline.arch.registers import (
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXSAVE,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
)
from trapline.processor.core import Core
from trapline.processor.memory import Ram
from trapline.processor.segment import fill

GDT, IDT, TASK = 0x1000, 0x2000, 0x4000
KERNEL, HANDLER, STACK_TOP, IST_TOP = 0x8000, 0x9000, 0x20000, 0x24000
USER, DATA, USER_STACK = 0x400000, 0x402000, 0x405000
USER_PHYSICAL = 0x40000
KERNEL_CS, KERNEL_SS, USER32_CS, USER_SS, USER_CS, TR = 0x08, 0x10, 0x1B, 0x23, 0x2B, 0x30

DESCRIPTORS = {
    KERNEL_CS: d.build_segment(0, d.FLAT_LIMIT, d.AR_CODE64),
    KERNEL_SS: d.build_segment(0, d.FLAT_LIMIT, d.AR_DATA32),
    USER32_CS: d.build_segment(0, d.FLAT_LIMIT, d.with_dpl(d.AR_CODE32, 3)),
    USER_SS: d.build_segment(0, d.FLAT_LIMIT, d.with_dpl(d.AR_DATA32, 3)),
    USER_CS: d.build_segment(0, d.FLAT_LIMIT, d.with_dpl(d.AR_CODE64, 3)),
}


@dataclass
class Frame:
    """What a handler finds on its stack."""

    error_code: int | None
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


class Watching:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.locks: list[tuple[Any, Any]] = []
        self.totals: list[tuple[Any, ...]] = []

    def bus_lock(self, lock: Any, outcome: Any) -> None:
        self.locks.append((lock, outcome))

    def bus_lock_total(self, *total: Any) -> None:
        self.totals.append(total)

    def undefined(self, rip: int, code: bytes, text: str) -> None: ...


class LongMode:
    """The processor and its memory; `core` is the real thing."""

    def __init__(self, model: str = "sapphire-rapids", engine: str = "interp") -> None:
        self.core = Core(model, Ram(16 << 20), engine=engine)
        self.state, self.bus = self.core.state, self.core.bus
        self.observer = Watching()
        self.core.observer = self.observer
        self.core.msrs.write(0x2FF, 0x806)
        self.tables = Tables(self)  # type: ignore[arg-type]
        self._map()
        self._fill_tables()
        self._enter()

    word, set_word = Bare.word, Bare.set_word

    def _map(self) -> None:
        self.tables.map(0, 0, PTE_P | PTE_W, level=2)
        for page in range(6):
            self.tables.map(USER + page * 0x1000, USER_PHYSICAL + page * 0x1000, FLAT)
        for entry in (4, 3):  # what covers user pages must allow them
            at = self.tables.entry(0, entry)
            self.set_word(at, self.word(at) | FLAT)

    def _fill_tables(self) -> None:
        for selector, descriptor in DESCRIPTORS.items():
            self.set_word(GDT + (selector & ~7), descriptor)
        low, high = d.build_system_segment(TASK, d.TSS_LIMIT, d.AR_TSS_BUSY)
        self.set_word(GDT + TR, low)
        self.set_word(GDT + TR + 8, high)
        self.set_word(TASK + d.TSS_RSP0, STACK_TOP)
        self.set_word(TASK + d.TSS_IST1, IST_TOP)
        self.set_word(TASK + d.TSS_IO_MAP_BASE, d.TSS_LIMIT + 1, 2)  # none
        for vector in range(256):
            self.gate(vector)
        self.bus.bytes[HANDLER : HANDLER + 0x1000] = b"\xf4" * 0x1000

    def gate(self, vector: int, **changes: Any) -> None:
        """Write a gate of the IDT; an interrupt gate for CPL 3 unless told otherwise."""
        values: dict[str, Any] = {
            "selector": KERNEL_CS,
            "offset": HANDLER + 16 * vector,
            "type": d.SystemType.INTERRUPT_GATE,
            "dpl": 3,
            "is_present": True,
        }
        low, high = d.build_gate(d.Gate(**(values | changes)))
        self.set_word(IDT + 16 * vector, low)
        self.set_word(IDT + 16 * vector + 8, high)

    def _enter(self) -> None:
        state = self.state
        state.gdtr_base, state.gdtr_limit = GDT, TR + 15
        state.idtr_base, state.idtr_limit = IDT, 0xFFF
        low = self.word(GDT + TR)
        fill(state, "tr", TR, low)
        state.ldtr_attributes = d.AR_UNUSABLE
        state.cr3, state.cr4 = self.tables.root, CR4_PAE | CR4_OSFXSR | CR4_OSXSAVE
        state.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE
        state.cr0 = CR0_PE | CR0_PG | CR0_WP
        state.pat, state.dr6, state.dr7 = 0x0007040600070406, 0xFFFF0FF0, 0x400
        state.mxcsr, state.fcw, state.xcr0 = 0x1F80, 0x37F, 1
        self.core.memory.mode_changed()
        self.kernel(b"")

    def kernel(self, code: bytes, **registers: int) -> LongMode:
        """Code at CPL 0, about to run."""
        self._start(KERNEL, KERNEL, KERNEL_CS, KERNEL_SS, STACK_TOP - 0x1000)
        return self._put(KERNEL, code, registers)

    def user(self, code: bytes, **registers: int) -> LongMode:
        """Code at CPL 3, about to run."""
        self._start(USER, USER_PHYSICAL, USER_CS, USER_SS, USER_STACK)
        return self._put(USER_PHYSICAL, code, registers)

    def user_32(self, code: bytes, **registers: int) -> LongMode:
        """32-bit code at CPL 3, about to run."""
        self._start(USER, USER_PHYSICAL, USER32_CS, USER_SS, USER_STACK)
        for name in ("ds", "es", "fs", "gs"):
            fill(self.state, name, USER_SS, DESCRIPTORS[USER_SS])
        return self._put(USER_PHYSICAL, code, registers)

    def _start(self, rip: int, physical: int, cs: int, ss: int, rsp: int) -> None:
        state = self.state
        fill(state, "cs", cs, DESCRIPTORS[cs])
        fill(state, "ss", ss, DESCRIPTORS[ss])
        state.rip, state.rsp, state.cpl = rip, rsp, cs & 3
        self.core.memory.privilege_changed()

    def _put(self, physical: int, code: bytes, registers: dict[str, int]) -> LongMode:
        self.bus.bytes[physical : physical + len(code)] = code
        for name, word in registers.items():
            setattr(self.state, name, word)
        return self

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.core.step()

    @property
    def vector(self) -> int | None:
        """Whose handler comes next, or has just halted."""
        offset = self.state.rip - HANDLER
        return offset >> 4 if 0 <= offset < 0x1000 else None

    def frame(self, has_error_code: bool = False) -> Frame:
        """The frame at RSP, as the handler sees it."""
        at = self.state.rsp
        words = [self.core.memory.read(at + 8 * i, 8, True) for i in range(6)]
        if has_error_code:
            return Frame(*words)
        return Frame(None, *words[:5])
