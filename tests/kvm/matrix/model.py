"""What must happen, written from the reference alone: no line of this calls the code under test.

Section numbers are those of the project's reference on the bus lock debug exception.  "silicon" is
a processor by itself, "kvm" one under the hypervisor, "upstream" the same with Linux's own choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.kvm.matrix.program import Step

ACTIVE_LOW = 0xFFFF0FF0  # A.4: at once DR6's reset value and the XOR to its positive form
B0, BLD, BD, BS = 1, 1 << 11, 1 << 13, 1 << 14
ENABLED_BREAKPOINT = 1 << 12
DB, UD, GP, PF, AC = 1, 6, 13, 14, 17
LINE, PAGE = 64, 4096
WB = 6


@dataclass(frozen=True)
class Processor:
    """Whose DR6 it is: the vendor, the layer, and whether the silicon has bit 11 (a hypervisor
    may hide that from the guest, which changes nothing here: E.3 does not look at CPUID)."""

    vendor: str = "intel"
    layer: str = "silicon"
    has_bld: bool = True


@dataclass(frozen=True)
class Operand:
    """The memory that the instruction updates, as all tables together make it."""

    offset: int  # of DATA
    size: int
    types: tuple[int, ...] = (WB,)  # of each page it touches
    is_present: bool = True


@dataclass(frozen=True)
class Situation:
    """What holds when the guest's first step starts."""

    cpl: int
    is_locked: bool
    operand: Operand
    bld: bool = True
    tf: bool = False
    btf: bool = False
    gd: bool = False
    ac: bool = False  # MSR_TEST_CTRL bit 29
    dr6: int = ACTIVE_LOW
    operand_hits: int = 0  # B0-B3 of the data breakpoints that the operation meets
    stack_hits: int = 0  # of those that the load of SS meets
    code_hits: int = 0  # of the code breakpoints on the NOP


@dataclass(frozen=True)
class Event:
    """A handler is entered: vector, saved RIP from the code's start, DR6 for #DB, error code."""

    vector: int
    rip: int
    dr6: int | None = None
    error_code: int | None = None

    def __str__(self) -> str:
        dr6 = "" if self.dr6 is None else f" DR6={self.dr6:08x}"
        code = "" if self.error_code is None else f" error={self.error_code:x}"
        return f"#{self.vector}@+{self.rip}{dr6}{code}"


# -- A.1: what a bus lock is ---------------------------------------------------------------------


def crosses_line(operand: Operand) -> bool:
    """A.1: `(linear & 63) + size > 64`."""
    return operand.offset % LINE + operand.size > LINE


def takes_bus_lock(is_locked: bool, operand: Operand) -> bool:
    """A.1: a locked access to WB memory that straddles lines, or to memory that is not WB."""
    return is_locked and (crosses_line(operand) or any(one != WB for one in operand.types))


def page_type(mtrr: int, pat: int) -> int:
    """A.1: "the effective type (MTRR + PAT, or EPT type/IPAT + PAT)".  That it is WB only where
    both are is all that matters here; any other answer stands for "not WB"."""
    return WB if mtrr == pat == WB else 0


# -- A.4 and E.3: DR6 ----------------------------------------------------------------------------


def silicon_dr6(before: int, causes: int, has_bld: bool) -> int:
    """A.4: B0-B3 replaced, BD and BS gather, bit 11 cleared by a bus lock and else untouched."""
    positive = (before ^ ACTIVE_LOW) & ~0xF | causes
    after = positive ^ ACTIVE_LOW
    return after if has_bld else after | BLD


def kvm_dr6(before: int, payload: int) -> int:
    """E.3, the five lines of kvm_deliver_exception_payload()."""
    dr6 = before & ~0xF
    dr6 |= ACTIVE_LOW
    dr6 |= payload
    dr6 ^= payload & ACTIVE_LOW
    return dr6 & ~ENABLED_BREAKPOINT


def delivered_dr6(processor: Processor, before: int, causes: int) -> int:
    """E.5: KVM takes every #DB.  On VMX the qualification is the payload; on SVM it is made from
    the saved DR6 (D.3), so an AMD guest sees what the silicon left.  I, first row: E.3's forced
    bit 11 is upstream's; unless asked for it, the hypervisor does as the silicon."""
    if processor.layer == "upstream" and processor.vendor == "intel":
        return kvm_dr6(before, causes)
    return silicon_dr6(before, causes, processor.has_bld)


def icebp_dr6(processor: Processor, before: int) -> int:
    """A.4: no status bit; Intel clears B0-B3 (exactly 0xFFFF0FF0 from reset), AMD leaves them."""
    if processor.vendor == "amd":
        return before
    return delivered_dr6(processor, before, 0)


# -- A.3: the walk over the instructions ---------------------------------------------------------


class Walk:
    """The guest's way through its steps.  The test's own part is played too: a handler returns,
    an #AC switches TEST_CTRL's bit off, a code breakpoint sets RF."""

    def __init__(self, processor: Processor, situation: Situation) -> None:
        self._processor, self._now = processor, situation
        self._dr6, self._gd, self._ac = situation.dr6, situation.gd, situation.ac
        self._btf = situation.btf
        self._held = 0  # by MOV SS
        self.events: list[Event] = []

    def over(self, steps: Sequence[Step]) -> list[Event]:
        at, is_blocked = 0, False
        for step in steps:
            # A.3, priority 7; E.6: not on the instruction after MOV SS.
            if step.kind == "nop" and self._now.code_hits and not is_blocked:
                self._debug(at, self._now.code_hits)
            if self._faults(step, at):
                return self.events
            at += len(step.code)
            is_blocked = step.kind == "mov ss"
            if step.kind == "icebp":
                self._icebp(at)
            else:
                self._complete(step, at)
        return self.events

    def _complete(self, step: Step, at: int) -> None:
        """A.3, priority 4: one #DB for all traps on an instruction; MOV SS holds them for one
        boundary, STI does not."""
        causes = self._held | self._traps(step)
        self._held = 0
        if step.kind == "mov ss":
            self._held = causes
        elif causes:
            self._debug(at, causes)

    def _traps(self, step: Step) -> int:
        now, causes = self._now, 0
        if now.tf and not self._btf:  # A.2: BTF steps on branches, and there are none here
            causes |= BS
        if step.kind == "mov ss":
            causes |= now.stack_hits
        if step.kind == "operation":
            causes |= now.operand_hits
            # A.2: CPL > 0 and BLD.
            if now.bld and now.cpl and takes_bus_lock(now.is_locked, now.operand):
                causes |= BLD
        return causes

    def _faults(self, step: Step, at: int) -> bool:
        """Whether the walk ends with a fault of this step; it may also be met and passed."""
        now = self._now
        match step.kind:
            case "ud2":
                self.events.append(Event(UD, at))
                return True
            case "mov dr" if now.cpl:  # A.5: MOV DRn needs CPL 0
                self.events.append(Event(GP, at, error_code=0))
                return True
            case "mov dr" if self._gd:  # A.5: fault, before the access
                self._debug(at, BD)
            case "operation" if not now.operand.is_present:  # A.3: no bus lock of a faulting access
                code = (4 if now.cpl == 3 else 0) | 2
                self.events.append(Event(PF, at, error_code=code))
                return True
            case "operation" if self._ac and self._is_split_wb():
                # B: at any CPL, before the access; then off, and the instruction again.
                self.events.append(Event(AC, at, error_code=0))
                self._ac, self._held = False, 0
        return False

    def _is_split_wb(self) -> bool:
        now = self._now
        return now.is_locked and crosses_line(now.operand) and set(now.operand.types) == {WB}

    def _debug(self, at: int, causes: int) -> None:
        self._dr6 = delivered_dr6(self._processor, self._dr6, causes)
        self._gd = self._btf = False  # A.5; A.2
        self.events.append(Event(DB, at, self._dr6))

    def _icebp(self, at: int) -> None:
        self._dr6 = icebp_dr6(self._processor, self._dr6)
        self._gd = self._btf = False
        self.events.append(Event(DB, at, self._dr6))


def expected(processor: Processor, situation: Situation, steps: Sequence[Step]) -> list[Event]:
    return Walk(processor, situation).over(steps)


def in_real_mode(events: list[Event]) -> list[Event]:
    """Real mode pushes no error codes (C.7 asks for them with CR0.PE only)."""
    return [Event(one.vector, one.rip, one.dr6) for one in events]
