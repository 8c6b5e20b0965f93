"""The combinations: causes, what is enabled beside, and which of them are run where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tests.kvm.matrix import modes, program
from tests.kvm.matrix.model import (
    WB,
    Event,
    Operand,
    Processor,
    Situation,
    expected,
    in_real_mode,
    page_type,
)
from tests.kvm.matrix.modes import Mode
from tests.kvm.matrix.program import OPERATIONS, Operation, Step
from tests.kvm.matrix.surface import Start
from trapline.arch.msr import DEBUGCTL_BLD, DEBUGCTL_BTF, TEST_CTRL_SPLIT_LOCK_AC
from trapline.arch.registers import RFLAGS_TF

STACK_WORD = 0xC100  # in a plain page of DATA, away from every operand
_PAT_TYPES = {index: modes.PAT >> 8 * index & 7 for index in range(8)}
_GD = 1 << 13
_INCREMENTS = frozenset({"add", "add register", "inc", "inc byte", "xadd"})


@dataclass(frozen=True)
class Cause:
    """Where the operand lies: the page of DATA, and how it meets the end of a line."""

    page: int
    placed: str = "whole"  # whole, split, fits (up to the line's end), page (crosses two)
    is_cache_disabled: bool = False

    def offset(self, size: int) -> int:
        line = {"whole": 0x40, "split": 0x80, "fits": 0x80, "page": 0x1000}[self.placed]
        back = {"whole": 0, "fits": size}.get(self.placed, size // 2)
        return 0x1000 * self.page + line - back


CAUSES = {
    "whole": Cause(0),
    "fits": Cause(0, "fits"),
    "split": Cause(0, "split"),
    "page": Cause(0, "page"),
    "page to UC": Cause(1, "page"),
    "PAT UC": Cause(2),
    "PAT UC split": Cause(2, "split"),
    "PAT WC": Cause(3),
    "PAT WT": Cause(4),
    "PAT WP": Cause(5),
    "PAT UC-": Cause(6),
    "MTRR UC": Cause(8),
    "MTRR WC": Cause(9),
    "MTRR WT": Cause(10),
    "MTRR WP": Cause(11),
    "MTRR WC split": Cause(9, "split"),
    "CR0.CD": Cause(0, is_cache_disabled=True),
    "absent": Cause(13, "page"),
}
_NEEDS_PAGING = frozenset(name for name in CAUSES if name.startswith(("PAT", "absent", "page to")))


@dataclass(frozen=True)
class Case:
    """One guest: an operation at an operand, and everything that is switched on beside it."""

    operation: str = "xadd"
    size: int = 4
    cause: str = "split"
    bld: bool = True
    tf: bool = False
    btf: bool = False
    gd: bool = False
    ac: bool = False
    watch: str = ""  # "", "data", "two", "stack", "code"
    before: str = ""  # "", "mov ss", "sti"
    dr6: int = 0xFFFF0FF0

    def __str__(self) -> str:
        flags = [name for name in ("bld", "tf", "btf", "gd", "ac") if getattr(self, name)]
        words = [self.before, f"{self.operation}/{self.size}", self.cause, *flags]
        words += [f"watch {self.watch}"] if self.watch else []
        words += [f"dr6={self.dr6:08x}"] if self.dr6 != 0xFFFF0FF0 else []
        return " ".join(word for word in words if word)

    @property
    def what(self) -> Operation:
        return OPERATIONS[self.operation]

    def fits(self, mode: Mode, processor: Processor) -> bool:
        """Whether this mode and this processor can have such a case."""
        cause = CAUSES[self.cause]
        if not self.what.fits(mode.bits, self.size) or (
            self.cause in _NEEDS_PAGING and not mode.paging
        ):
            return False
        if self.size == 1 and cause.placed in ("split", "page"):
            return False
        if self.size == 16 and cause.placed != "whole":
            return False  # A.1: misaligned, CMPXCHG16B is #GP
        if self.watch == "code" and mode.gate_bits == 16:
            return False  # a frame of words has no RF to pass the breakpoint with
        if self.cause == "absent" and self.before == "mov ss":
            return False  # what becomes of the traps held back is stated nowhere
        if self.btf and processor.layer != "silicon":
            return False  # E.7: dropped
        if self.ac and (processor.layer == "upstream" or processor.vendor == "amd"):
            return False  # B: KVM gives no guest MSR 0x33, and AMD has none
        if self.bld and processor.layer == "upstream" and processor.vendor == "amd":
            return False  # E.7: BLD cannot be set by an SVM guest
        return not self.bld or processor.has_bld  # A.2: WRMSR refuses it

    def steps(self, mode: Mode) -> list[Step]:
        return program.steps(mode, self.what, self.size, self.before, self.gd)

    def operand(self, mode: Mode, processor: Processor) -> Operand:
        cause = CAUSES[self.cause]
        offset = cause.offset(self.size)
        first, last = offset >> 12, offset + self.size - 1 >> 12
        types = []
        for page in range(first, last + 1):
            pat = _PAT_TYPES[modes.PAGE_TYPES.get(page, 0)] if mode.paging else WB
            mtrr = modes.MTRR_PAGES.get(page, WB)
            is_disabled = cause.is_cache_disabled
            if processor.layer != "silicon":
                # EPT or NPT says WB whatever the guest's MTRRs do; KVM keeps CD from the
                # processor (E.8's neighbour vmx_set_cr0(): KVM_VM_CR0_ALWAYS_OFF).
                mtrr, is_disabled = WB, False
            types.append(0 if is_disabled else page_type(mtrr, pat))
        is_present = not (mode.paging and modes.ABSENT_PAGE in (first, last))
        return Operand(offset, self.size, tuple(types), is_present)

    def situation(self, mode: Mode, cpl: int, processor: Processor) -> Situation:
        touches = self.operation != "load"
        hits = {"data": 2, "two": 9}.get(self.watch, 0) if touches else 0
        return Situation(
            cpl=cpl,
            is_locked=self.what.is_locked,
            operand=self.operand(mode, processor),
            bld=self.bld,
            tf=self.tf,
            btf=self.btf,
            gd=self.gd,
            ac=self.ac,
            dr6=self.dr6,
            operand_hits=hits,
            stack_hits=4 if self.watch == "stack" else 0,
            code_hits=4 if self.watch == "code" else 0,
        )

    def start(self, mode: Mode, cpl: int, at: int) -> Start:
        """`at`: where the code stands, from CODE."""
        steps = self.steps(mode)
        offset = CAUSES[self.cause].offset(self.size)
        lengths = [len(step.code) for step in steps if step.kind in ("mov ss", "sti", "operation")]
        breakpoints, dr7 = self._breakpoints(modes.DATA + offset, modes.CODE + at + sum(lengths))
        return Start(
            program.code_of(steps),
            operand=offset,
            stack_word=STACK_WORD,
            rflags=2 | (RFLAGS_TF if self.tf else 0),
            breakpoints=breakpoints,
            dr6=self.dr6,
            dr7=dr7 | (_GD if self.gd else 0),
            debugctl=(DEBUGCTL_BLD if self.bld else 0) | (DEBUGCTL_BTF if self.btf else 0),
            test_ctrl=TEST_CTRL_SPLIT_LOCK_AC if self.ac else 0,
            code_hits=4 if self.watch == "code" else 0,
            is_cache_disabled=CAUSES[self.cause].is_cache_disabled,
            general={"rax": 1, "rcx": 0, "rdx": 0, "rbx": 0},
        )

    @property
    def sum(self) -> int | None:
        """What a single execution leaves in the operand, 0 before; None: nobody's business."""
        if self.operation not in _INCREMENTS:
            return None
        return 0 if self.cause == "absent" else 1

    def _breakpoints(self, operand: int, nop: int) -> tuple[tuple[int, int, int, int], int]:
        """DR0-DR3 and DR7; A.5 for the layout, one byte each."""
        match self.watch:
            case "data":  # B1, writes
                return (0, operand, 0, 0), 0x400 | 1 << 2 | 1 << 20
            case "two":  # B0 writes, B3 any access, the operand's last byte
                last = operand + self.size - 1
                return (operand, 0, 0, last), 0x400 | 1 | 1 << 6 | 1 << 16 | 3 << 28
            case "stack":  # B2, any access
                return (0, 0, modes.DATA + STACK_WORD, 0), 0x400 | 1 << 5 | 3 << 24
            case "code":  # B2
                return (0, 0, nop, 0), 0x400 | 1 << 4
        return (0, 0, 0, 0), 0x400

    def outcome(self, mode: Mode, cpl: int, processor: Processor) -> list[Event]:
        events = expected(processor, self.situation(mode, cpl, processor), self.steps(mode))
        return in_real_mode(events) if mode.is_real else events


# -- which cases there are -----------------------------------------------------------------------

_WATCHES = ("", "data", "two", "code")


def by_cause() -> Iterator[Case]:
    """Every cause, at each size, with BLD and without."""
    for cause in CAUSES:
        for bld in (True, False):
            yield Case(cause=cause, bld=bld)
        for size in (2, 8):
            yield Case("add", size, cause)
        yield Case("cmpxchg8b", 8, cause)


def by_operation() -> Iterator[Case]:
    """Every operation, split and uncached."""
    for operation in OPERATIONS.values():
        for size in operation.sizes:
            for cause in ("split", "PAT UC", "MTRR UC", "whole"):
                yield Case(operation.name, size, cause)


def by_company() -> Iterator[Case]:
    """What comes together with a bus lock: TF, breakpoints, MOV SS or STI before, DR7.GD."""
    for cause in ("split", "PAT WC", "MTRR WC", "whole"):
        for before in ("", "mov ss", "sti"):
            for watch in (*_WATCHES, *(("stack",) if before == "mov ss" else ())):
                for number in range(8):
                    tf, gd, bld = number & 1, number >> 1 & 1, not number >> 2
                    yield Case(
                        cause=cause, before=before, watch=watch, tf=bool(tf), gd=bool(gd), bld=bld
                    )


def by_history() -> Iterator[Case]:
    """What DR6 and DEBUGCTL held before, and #AC beside it all."""
    for case in (Case(), Case(tf=True), Case(cause="whole", tf=True), Case(cause="PAT UC")):
        for dr6 in (0xFFFF07F0, 0xFFFFEFFF, 0xFFFF47F1):
            yield replace(case, dr6=dr6)
        yield replace(case, btf=True)
        yield replace(case, ac=True)
        yield replace(case, ac=True, btf=True, watch="data")
        yield replace(case, ac=True, before="mov ss")


def everything() -> Iterator[Case]:
    """The whole product, without the operations that differ in nothing but their arithmetic."""
    for operation, size in (("xadd", 4), ("xchg", 2), ("cmpxchg8b", 8), ("inc without lock", 4)):
        for cause in CAUSES:
            for company in by_company():
                if company.cause == "split":
                    yield replace(company, operation=operation, size=size, cause=cause)


def selection(layer: str, has_bld: bool = True) -> list[Case]:
    """What covers every value of every dimension, and every pair that the reference speaks of;
    less of it where a layer differs from another in a few things only."""
    if layer == "upstream":
        found = [*by_history(), *by_cause(), *(one for one in by_company() if one.tf)]
    else:
        found = [*by_cause(), *by_operation(), *by_company(), *by_history()]
    if not has_bld:
        found = found[::3]
    return list(dict.fromkeys(found))


def share(cases: Sequence[Case], number: int) -> Sequence[Case]:
    """Half of them, the other half for the next number: neighbouring modes, CPLs and engines take
    turns, so that every case is run on every kind of processor."""
    return cases[number % 2 :: 2]
