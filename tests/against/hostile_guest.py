"""A guest for hostile code: RAM between canaries and guard pages, a small system around the code.

Every fault's handler steps one byte past the culprit and goes on, until it has counted enough of
them and halts.  Nothing here knows which code will run.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, cast

from iced_x86 import Code, Register

from tests.against.assemble import Memory, Program
from tests.processor.bare import Tables
from trapline.arch import descriptor as d
from trapline.arch.paging import PTE_A, PTE_D, PTE_NX, PTE_P, PTE_U, PTE_W
from trapline.arch.registers import (
    CR0_AM,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    CR4_PAE,
    CR4_TSD,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
)
from trapline.processor.core import Core
from trapline.processor.memory import Ram
from trapline.processor.segment import fill

PAGE = 4096
SIZE = 1 << 20
GUARD = 1 << 20
CANARY = bytes(range(251)) * 17
FAULTS = 10  # until the handler halts

# Physical, and for the supervisor linear, too.
GDT, IDT, TASK, STUBS, COUNTER = 0x1000, 0x2000, 0x3000, 0x4000, 0x6000
HALT, REAL_CODE = 0x7000, 0x7100  # where a HLT stands, and the code in real mode
TABLES, TABLES_END = 0x8000, 0x1_8000
STACK, STACK_TOP, SPARE_STACK_TOP = 0x1_8000, 0x1_C000, 0x1_F000
KERNEL_CODE = 0x2_0000
# Pages of CPL 3: the same physical ones at other linear addresses.
CODE, CODE_SIZE = 0x8_0000, 0x4_0000
DATA, DATA_SIZE = 0xC_0000, 0x8000
READ_ONLY, USER_STACK_TOP = 0xC_8000, 0xD_0000
USER = 0x4000_0000  # what is added to these for CPL 3

KERNEL_CS, KERNEL_SS, CODE32, USER_SS, USER_CS, CODE16, USER32, USER16, TR = (
    0x08, 0x10, 0x18, 0x23, 0x2B, 0x30, 0x3B, 0x43, 0x48,
)  # fmt: skip
_FLAT = d.FLAT_LIMIT
DESCRIPTORS = {
    KERNEL_CS: d.build_segment(0, _FLAT, d.AR_CODE64),
    KERNEL_SS: d.build_segment(0, _FLAT, d.AR_DATA32),
    CODE32: d.build_segment(0, _FLAT, d.AR_CODE32),
    USER_SS: d.build_segment(0, _FLAT, d.with_dpl(d.AR_DATA32, 3)),
    USER_CS: d.build_segment(0, _FLAT, d.with_dpl(d.AR_CODE64, 3)),
    CODE16: d.build_segment(0, 0xFFFFF, d.AR_CODE16),
    USER32: d.build_segment(0, _FLAT, d.with_dpl(d.AR_CODE32, 3)),
    USER16: d.build_segment(USER + CODE, 0xFFFFF, d.with_dpl(d.AR_CODE16, 3)),
}
SELECTORS = {(64, 0): KERNEL_CS, (32, 0): CODE32, (16, 0): CODE16,
             (64, 3): USER_CS, (32, 3): USER32, (16, 3): USER16}  # fmt: skip
_PUSHING = (8, 10, 11, 12, 13, 14, 17, 21, 29, 30)  # vectors with an error code
_FATAL = (8, 18)

_UNMARKED = int.from_bytes(
    (~(PTE_A | PTE_D) & (1 << 64) - 1).to_bytes(8, "little") * ((TABLES_END - TABLES) // 8),
    "little",
)
PROT_NONE = 0
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class GuardedRam(Ram):
    """RAM with a canary page on each side, and pages beyond them that nobody may touch."""

    def __init__(self, size: int) -> None:
        super().__init__(PAGE)
        room = mmap.mmap(-1, size + 2 * (PAGE + GUARD), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = ctypes.addressof(ctypes.c_char.from_buffer(room))
        self._room = memoryview(room)
        self._canaries = (GUARD, GUARD + PAGE + size)
        for at in self._canaries:
            self._room[at : at + PAGE] = CANARY[:PAGE]
        for at in (0, GUARD + 2 * PAGE + size):
            if libc.mprotect(address + at, GUARD, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.size = size
        self.start = address + GUARD + PAGE
        self.bytes = cast(Any, self._room[GUARD + PAGE : GUARD + PAGE + size])

    def canaries_live(self) -> bool:
        return all(self._room[at : at + PAGE] == CANARY[:PAGE] for at in self._canaries)


class Guest:
    """RAM as it is before any case, and processors to run on it."""

    def __init__(self) -> None:
        self.bus = GuardedRam(SIZE)
        self.tables = Tables(cast(Any, self), TABLES)
        self._map()
        self._describe()
        self._handle()
        self.pristine = bytes(self.bus.bytes)

    def word(self, physical: int) -> int:
        return int.from_bytes(self.bus.bytes[physical : physical + 8], "little")

    def set_word(self, physical: int, word: int, size: int = 8) -> None:
        self.bus.bytes[physical : physical + size] = word.to_bytes(size, "little")

    # -- what the guest is made of -----------------------------------------------------------------

    def _map(self) -> None:
        for page in range(0, SIZE + 4 * PAGE, PAGE):  # a few pages of nothing behind RAM
            self.tables.map(page, page, PTE_P | PTE_W)
        for page in range(CODE, CODE + CODE_SIZE, PAGE):
            self.tables.map(USER + page, page, PTE_P | PTE_W | PTE_U)
        for page in range(DATA, USER_STACK_TOP, PAGE):
            rights = PTE_P | PTE_U | PTE_NX | (PTE_W if page != READ_ONLY else 0)
            self.tables.map(USER + page, page, rights)

    def _describe(self) -> None:
        for selector, descriptor in DESCRIPTORS.items():
            self.set_word(GDT + (selector & ~7), descriptor)
        low, high = d.build_system_segment(TASK, d.TSS_LIMIT, d.AR_TSS_BUSY)
        self.set_word(GDT + TR, low)
        self.set_word(GDT + TR + 8, high)
        self.set_word(TASK + d.TSS_RSP0, STACK_TOP)
        self.set_word(TASK + d.TSS_IST1, SPARE_STACK_TOP)
        self.set_word(TASK + d.TSS_IO_MAP_BASE, d.TSS_LIMIT + 1, 2)

    def _handle(self) -> None:
        """The interrupt table and the code behind it."""
        program = Program()
        for vector in range(256):
            program.label(f"vector {vector}")
            if vector in _FATAL:
                program.add(Code.HLT)
                continue
            if vector not in _PUSHING:
                program.add(Code.PUSHQ_IMM8, 0)
            program.add(Code.JMP_REL32_64, "common")
        program.label("common")
        program.add(Code.DEC_RM32, Memory(displacement=COUNTER, displacement_size=8))
        program.add(Code.JE_REL32_64, "stop")
        program.add(Code.INC_RM64, Memory(Register.RSP, displacement=8, displacement_size=1))
        program.add(Code.ADD_RM64_IMM8, Register.RSP, 8)
        program.add(Code.IRETQ)
        program.label("stop")
        program.add(Code.HLT)
        code, labels = program.assemble(STUBS)
        assert len(code) <= COUNTER - STUBS
        self.bus.bytes[STUBS : STUBS + len(code)] = code
        for vector in range(256):
            stack = 1 if vector in (2, 8, 18) else 0
            kind = d.SystemType.INTERRUPT_GATE
            # INT n pushes no error code, so it may not reach a handler that expects one.
            dpl = 3 if vector in (3, 4) or vector >= 32 else 0
            gate = d.Gate(KERNEL_CS, labels[f"vector {vector}"], kind, dpl, True, stack)
            low, high = d.build_gate(gate)
            self.set_word(IDT + 16 * vector, low)
            self.set_word(IDT + 16 * vector + 8, high)
        self.set_word(COUNTER, FAULTS)
        # Who runs off the end of his code comes to an end soon.
        for start, end in ((HALT, TABLES), (SPARE_STACK_TOP, CODE + CODE_SIZE)):
            self.bus.bytes[start:end] = b"\xf4" * (end - start)

    # -- running -----------------------------------------------------------------------------------

    def restore(self) -> None:
        """RAM as it was."""
        self.bus.bytes[:] = self.pristine

    def core(self, engine: str, cpl: int, bits: int) -> Core:
        """A new processor in long mode, about to run code of that kind."""
        core = Core("sapphire-rapids", self.bus, engine=engine)
        core.msrs.write(0x2FF, 0x806)
        state: Any = core.state
        state.gdtr_base, state.gdtr_limit = GDT, TR + 15
        state.idtr_base, state.idtr_limit = IDT, 0xFFF
        fill(core.state, "tr", TR, self.word(GDT + TR))
        state.ldtr_attributes = d.AR_UNUSABLE
        selector = SELECTORS[bits, cpl]
        fill(core.state, "cs", selector, DESCRIPTORS[selector])
        stack = USER_SS if cpl else KERNEL_SS
        for name in ("ss", "ds", "es", "fs", "gs"):
            fill(core.state, name, stack, DESCRIPTORS[stack])
        state.cr3, state.efer = self.tables.root, EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE
        state.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_TSD
        state.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG
        state.pat, state.dr6, state.dr7 = 0x0007_0406_0007_0406, 0xFFFF_0FF0, 0x400
        state.mxcsr, state.fcw, state.xcr0, state.cpl = 0x1F80, 0x37F, 1, cpl
        state.lstar, state.star, state.sfmask = HALT, KERNEL_SS << 48 | KERNEL_CS << 32, 0x4_7700
        core.memory.mode_changed()
        core.memory.privilege_changed()
        return core

    def real_mode_core(self, engine: str) -> Core:
        """A new processor in real mode; every interrupt leads to a HLT."""
        core = Core("sapphire-rapids", self.bus, engine=engine)
        core.msrs.write(0x2FF, 0x806)
        state: Any = core.state
        for vector in range(256):
            self.set_word(4 * vector, HALT, 4)
        for name in ("cs", "ss", "ds", "es", "fs", "gs"):
            setattr(state, f"{name}_limit", 0xFFFF)
            setattr(state, f"{name}_attributes", 0x9B if name == "cs" else 0x93)
        state.ldtr_attributes = d.AR_UNUSABLE
        state.idtr_limit, state.cr0 = 0x3FF, CR0_ET
        state.pat, state.dr6, state.dr7 = 0x0007_0406_0007_0406, 0xFFFF_0FF0, 0x400
        state.mxcsr, state.fcw, state.cr4 = 0x1F80, 0x37F, CR4_OSFXSR
        core.memory.mode_changed()
        core.memory.privilege_changed()
        return core

    def protected_parts(self) -> tuple[int, bytes]:
        """What code at CPL 3 cannot change: all of the supervisor's but its stack, the counter
        and the marks that walks leave in the tables."""
        tables = int.from_bytes(self.bus.bytes[TABLES:TABLES_END], "little") & _UNMARKED
        content = self.bus.bytes
        return tables, b"".join(
            (
                content[:COUNTER],
                content[COUNTER + 8 : TABLES],
                content[SPARE_STACK_TOP:CODE],
                content[READ_ONLY : READ_ONLY + PAGE],
            )
        )
