"""What leaves a guest when its hypervisor intercepts #DB or bus locks: the model's second half.

As `model`, written from the reference alone.  The exits' own part of the test is played here too:
who is left for a fault clears DR7.GD or sets RF and goes on, a bus lock threshold is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.kvm.matrix import model
from tests.kvm.matrix.model import (
    BD,
    ENABLED_BREAKPOINT,
    Event,
    Processor,
    Situation,
    Walk,
    silicon_dr6,
    takes_bus_lock,
)
from tests.kvm.matrix.program import Step

VMX_EXCEPTION, VMX_BUS_LOCK = 0, 74 | 1 << 26  # C.5, C.6
VMX_DB = 0x80000301  # C.1: valid, hardware exception, vector 1
SVM_DB, SVM_BUS_LOCK = 0x41, 0xA5  # D.3, D.2


@dataclass(frozen=True)
class Exit:
    """The guest is left: the reason and the words it comes with, and what is saved with it."""

    reason: int
    words: tuple[int, ...]  # VMX: interruption information, qualification; SVM: EXITINFO1, 2
    rip: int
    dr6: int
    gd: bool
    pending: int = 0  # VMX's pending debug exceptions

    def __str__(self) -> str:
        words = ",".join(f"{word:x}" for word in self.words)
        text = f"exit {self.reason:x}({words})@+{self.rip} DR6={self.dr6:08x}"
        return (
            text
            + (" GD" if self.gd else "")
            + (f" pending={self.pending:x}" if self.pending else "")
        )


@dataclass(frozen=True)
class Wish:
    """What the hypervisor intercepts.  `threshold`: the counter at the first entry, SVM."""

    db: bool = False
    bus_lock: bool = False
    threshold: int = 0


class VmxWalk(Walk):
    """C.2, C.3, C.5."""

    def __init__(self, situation: Situation, wish: Wish) -> None:
        super().__init__(Processor("intel"), situation)
        self._wish = wish
        self.events: list[Event | Exit] = []  # type: ignore[assignment]

    def _complete(self, step: Step, at: int) -> None:
        now = self._now
        is_bus_lock = step.kind == "operation" and takes_bus_lock(now.is_locked, now.operand)
        if self._wish.bus_lock and is_bus_lock:
            # C.3: exit 74 leaves the traps pending, bit 12 with an enabled breakpoint; C.5: at any
            # CPL, whatever BLD says.
            pending = self._held | self._traps(step)
            pending |= ENABLED_BREAKPOINT if pending & 0xF else 0
            self.events.append(Exit(VMX_BUS_LOCK, (0, 0), at, self._dr6, self._gd, pending))
        super()._complete(step, at)

    def _debug(self, at: int, causes: int) -> None:
        if not self._wish.db:
            super()._debug(at, causes)
            return
        # C.2: DR6, DR7.GD and DEBUGCTL are not updated.
        self.events.append(Exit(VMX_EXCEPTION, (VMX_DB, causes), at, self._dr6, self._gd))
        if causes & BD:
            self._gd = False


class SvmWalk(Walk):
    """D.2, D.3."""

    def __init__(self, situation: Situation, wish: Wish) -> None:
        super().__init__(Processor("amd"), situation)
        self._wish, self._counter = wish, wish.threshold
        self.events: list[Event | Exit] = []  # type: ignore[assignment]

    def _faults(self, step: Step, at: int) -> bool:
        if super()._faults(step, at):
            return True
        now = self._now
        is_bus_lock = step.kind == "operation" and takes_bus_lock(now.is_locked, now.operand)
        if self._wish.bus_lock and is_bus_lock:
            if not self._counter:  # D.2: not executed
                self.events.append(Exit(SVM_BUS_LOCK, (0, 0), at, self._dr6, self._gd))
                self._held = 0  # D.3: there is no field that could keep them
            else:
                self._counter -= 1
        return False

    def _debug(self, at: int, causes: int) -> None:
        if not self._wish.db:
            super()._debug(at, causes)
            return
        # D.3: DR6 and DR7 are saved as the handler would see them.
        self._dr6 = silicon_dr6(self._dr6, causes, True)
        self._gd = self._btf = False
        self.events.append(Exit(SVM_DB, (0, 0), at, self._dr6, False))


def expected(
    vendor: str, situation: Situation, wish: Wish, steps: Sequence[Step]
) -> Sequence[Event | Exit]:
    walk = VmxWalk(situation, wish) if vendor == "intel" else SvmWalk(situation, wish)
    return walk.over(steps)


def in_real_mode(found: Sequence[Event | Exit]) -> list[Event | Exit]:
    return [one if isinstance(one, Exit) else model.in_real_mode([one])[0] for one in found]
