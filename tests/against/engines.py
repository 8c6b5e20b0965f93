"""Trapline's two engines as answers to cases: the state in, one instruction, the state out.

The guest is at CPL 3 in long mode; page tables give the layout's regions the rights they have on
the host.  Nothing here knows what is right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from tests.against.layout import (
    CODE,
    FS_BASE,
    GS_BASE,
    REGIONS,
    TOTAL,
    USER_CS,
    USER_CS_32,
    USER_DS,
    background,
    linear_of,
    pieces,
)
from tests.against.state import FIXED_FLAGS, FLAGS, FX_SIZE, HEAD, Case, Fault, Outcome
from tests.processor.bare import Tables
from trapline.arch.paging import PTE_NX, PTE_P, PTE_U, PTE_W
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
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
)
from trapline.processor import boundary
from trapline.processor import fault as processor_fault
from trapline.processor.core import Core
from trapline.processor.decode import Decoded, decode
from trapline.processor.jit.facts import facts_of
from trapline.processor.jit.flags import UNKNOWN
from trapline.processor.jit.handlers import Request
from trapline.processor.jit.shape import shape_of
from trapline.processor.memory import Ram
from trapline.processor.state import STATE_SIZE, X87_OFFSET, XMM_OFFSET

PAGE_FAULT = 14
STORE = 0x8_0000  # where the regions lie in RAM, in the order of `background()`
TABLES = 0x1_0000
RAM_SIZE = 0x10_0000
# A REP instruction may stop between two iterations; this often it goes on.
RESUMPTIONS = 1 << 16
_CODE_64, _CODE_32, _DATA, _NULL = 0xA0FB, 0xC0FB, 0xC0F3, 0x1_0000
_FLAT = 0xFFFF_FFFF


@dataclass
class Answer:
    """What an engine made of a case."""

    outcome: Outcome
    native: bool = False  # no part of it was done by the reference engine
    undefined: str | None = None  # the name under which it was refused as not implemented


class _Core(Core):
    """A processor that counts what the reference engine does."""

    interpreted = 0

    def interpret(self, instruction: Decoded | None = None) -> None:
        self.interpreted += 1
        super().interpret(instruction)


class Engine:
    """A processor with the layout's memory; `run` as the host's."""

    name: str

    def __init__(self) -> None:
        self.ram = Ram(RAM_SIZE)
        self.core = _Core("max", self.ram, engine=self.name)
        self._background = background()
        self._start()
        self.ram.load(STORE, self._background)
        self._modes = {}
        for bits in (64, 32):
            self._set_segments(bits)
            self._modes[bits] = self.core.state.snapshot()

    def run(self, cases: Iterable[Case]) -> list[Answer]:
        """Execute each case; their order is kept."""
        return [self.run_one(case) for case in cases]

    def close(self) -> None:
        self.core.close()

    def run_program(self, case: Case) -> Answer:
        """Execute instructions until one raises a fault."""
        patched = self._load(case)
        self.core.cluster.drop_code(self.ram.start + STORE)  # nobody saw the code page change
        fault, undefined = None, None
        self.core.interpreted = 0
        try:
            for _ in range(RESUMPTIONS):
                self._run()
        except processor_fault.Fault as raised:
            fault, undefined = self._raised(raised)
        outcome = self._outcome(fault, fault is None)
        self._restore(patched)
        return Answer(outcome, not self.core.interpreted, undefined)

    # -- the processor -----------------------------------------------------------------------------

    def word(self, physical: int) -> int:
        return int.from_bytes(self.ram.bytes[physical : physical + 8], "little")

    def set_word(self, physical: int, word: int) -> None:
        self.ram.bytes[physical : physical + 8] = word.to_bytes(8, "little")

    def _start(self) -> None:
        core, state = self.core, self.core.state
        tables = Tables(cast(Any, self), TABLES)
        physical = STORE
        for region in REGIONS:
            rights = PTE_P | PTE_U | PTE_W * region.writable | PTE_NX * (not region.executable)
            for page in range(region.linear, region.end, 0x1000):
                tables.map(page, physical, rights)
                physical += 0x1000
        core.msrs.mtrrs.write(0x2FF, 0x806)  # enabled, write-back
        state.pat = 0x0007_0406_0007_0406
        state.dr6, state.dr7 = 0xFFFF_0FF0, 0x400
        state.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG
        state.cr3 = tables.root
        state.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE
        state.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE
        state.xcr0 = 3
        state.cpl = 3
        core.memory.mode_changed()
        core.memory.privilege_changed()

    def _set_segments(self, bits: int) -> None:
        state: Any = self.core.state
        for name in ("es", "ss", "ds", "fs", "gs"):
            setattr(state, f"{name}_selector", USER_DS)
            setattr(state, f"{name}_base", 0)
            setattr(state, f"{name}_limit", _FLAT)
            setattr(state, f"{name}_attributes", _DATA)
        # In 32-bit code no case uses FS or GS; the fast engine wants all segments flat.
        state.fs_selector = state.gs_selector = 0
        state.cs_base, state.cs_limit = 0, _FLAT
        if bits == 64:
            state.cs_selector, state.cs_attributes = USER_CS, _CODE_64
            state.fs_base, state.gs_base = FS_BASE, GS_BASE
            state.fs_attributes = state.gs_attributes = _NULL
        else:
            state.cs_selector, state.cs_attributes = USER_CS_32, _CODE_32

    # -- one case ----------------------------------------------------------------------------------

    def run_one(self, case: Case) -> Answer:
        """Execute one case."""
        patched = self._load(case)
        fault, undefined, hung = None, None, False
        self.core.interpreted = 0
        try:
            hung = not self._execute(case)
        except processor_fault.Fault as raised:
            fault, undefined = self._raised(raised)
        outcome = self._outcome(fault, hung)
        self._restore(patched)
        return Answer(outcome, not self.core.interpreted, undefined)

    def _raised(self, raised: processor_fault.Fault) -> tuple[Fault, str | None]:
        self.core.memory.notes.drop()
        cr2 = raised.cr2 or 0 if raised.vector == PAGE_FAULT else 0
        undefined = raised.text if isinstance(raised, processor_fault.Undefined) else None
        return Fault(raised.vector, raised.error_code or 0, cr2), undefined

    def _execute(self, case: Case) -> bool:
        """False if a REP instruction never ended."""
        state, entry = self.core.state, case.entry
        self._step()
        for _ in range(RESUMPTIONS):
            if state.rip != entry:
                return True
            self._step()
        return False

    def _step(self) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        """One instruction or many."""
        self._step()

    def _load(self, case: Case) -> list[tuple[int, int]]:
        core, state = self.core, self.core.state
        state.bytes[:STATE_SIZE] = self._modes[case.bits]
        for number, word in enumerate(case.registers):
            state.q[number] = word
        state.rip = case.entry
        state.rflags = case.flags & FLAGS | FIXED_FLAGS
        core.memory.privilege_changed()
        _load_float(state, case.fx)
        patched = []
        for linear, content in ((case.entry, case.code), *case.memory):
            for offset, piece in pieces(linear, content):
                start = STORE + offset
                self.ram.bytes[start : start + len(piece)] = piece
                patched.append((offset, len(piece)))
        return patched

    def _restore(self, patched: list[tuple[int, int]]) -> None:
        for offset, size in patched:
            start = STORE + offset
            self.ram.bytes[start : start + size] = self._background[offset : offset + size]

    def _outcome(self, fault: Fault | None, hung: bool) -> Outcome:
        state = self.core.state
        found = Outcome(
            list(state.q[:16]), state.rip, state.rflags, _store_float(state), {}, fault, hung
        )
        found.memory = self._changes()
        return found

    def _changes(self) -> dict[int, bytes]:
        """The aligned eight bytes that differ from the background, which is put back."""
        skipped = CODE.size
        content = self.ram.bytes[STORE + skipped : STORE + TOTAL]
        if content == self._background[skipped:]:
            return {}
        changes = {}
        for start in range(0, len(content), 256):
            piece = content[start : start + 256]
            at = skipped + start
            if piece == self._background[at : at + 256]:
                continue
            for word in range(0, 256, 8):
                eight = piece[word : word + 8]
                if eight != self._background[at + word : at + word + 8]:
                    changes[linear_of(at + word)] = eight
            self.ram.bytes[STORE + at : STORE + at + 256] = self._background[at : at + 256]
        return changes


class Interp(Engine):
    """The reference engine."""

    name = "interp"

    def _step(self) -> None:
        boundary.before(self.core)
        self.core.interpret()
        boundary.after(self.core)


class Jit(Engine):
    """The fast engine, one instruction at a time."""

    name = "jit"

    def _step(self) -> None:
        self.core.step_natively()

    def _run(self) -> None:
        engine = self.core.engine
        assert engine is not None
        boundary.before(self.core)
        if boundary.must_step(self.core):
            self.core.interpret()
        else:
            engine.run()
        boundary.after(self.core)

    def compile(self, cases: Iterable[Case]) -> int:
        """Make the handlers that cases want, many at once; how many different ones."""
        wanted: dict[Request, None] = {}
        for case in cases:
            instruction = _decode(case)
            if instruction is not None and facts_of(instruction).is_native:
                wanted[Request(shape_of(instruction), True, UNKNOWN)] = None
        assert self.core.engine is not None
        code = self.core.engine.code
        code.arena.next = 0  # what was stepped through is never entered again
        code.book.require(list(wanted))
        return len(wanted)


def _decode(case: Case) -> Decoded | None:
    return decode(case.code, case.entry, case.bits, case.bits)


def _load_float(state: Any, image: bytes) -> None:
    state.fcw, state.fsw, state.ftw, state.fop, state.fip, state.fdp, state.mxcsr, _ = (
        HEAD.unpack_from(image)
    )
    state.fcs = state.fds = 0
    top = state.fsw >> 11 & 7
    stack = image[32:160]
    turned = stack[128 - 16 * top :] + stack[: 128 - 16 * top] if top else stack
    state.bytes[X87_OFFSET : X87_OFFSET + 128] = turned
    state.bytes[XMM_OFFSET : XMM_OFFSET + 256] = image[160:416]


def _store_float(state: Any) -> bytes:
    head = HEAD.pack(
        state.fcw & 0xFFFF, state.fsw & 0xFFFF, state.ftw & 0xFF, state.fop & 0xFFFF,
        state.fip, state.fdp, state.mxcsr & 0xFFFF_FFFF, 0,
    )  # fmt: skip
    stack = bytes(state.bytes[X87_OFFSET : X87_OFFSET + 128])
    top = state.fsw >> 11 & 7
    turned = stack[16 * top :] + stack[: 16 * top]
    vectors = bytes(state.bytes[XMM_OFFSET : XMM_OFFSET + 256])
    return (head + turned + vectors).ljust(FX_SIZE, b"\0")
