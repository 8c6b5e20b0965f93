"""The guest's debug registers as KVM keeps them: DR6's fixed bits, #DB payloads, whose DR7 counts.

DR0-DR3 and DR6 live in the register file, as nothing but the guest needs them there; while a
debugger has the breakpoints (GUESTDBG_USE_HW_BP) the guest's own wait here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trapline.arch.debug import (
    DR6_ACTIVE_LOW,
    DR6_BREAKPOINTS,
    DR6_BUS_LOCK,
    DR6_FIXED_1,
    DR6_RTM,
    DR6_VOLATILE,
    DR7_FIXED_1,
    DR7_GD,
    DR7_VOLATILE,
    DR_UPPER,
    PAYLOAD_ENABLED_BREAKPOINT,
)
from trapline.kvm import quirks
from trapline.kvm.quirks import Quirk

if TYPE_CHECKING:
    from trapline.kvm.backend import Backend


def deliver_payload(dr6: int, payload: int, sets_bus_lock: bool = False) -> int:
    """DR6 after a #DB with this payload (kvm_deliver_exception_payload).

    B0-B3 are replaced, BD, BS and BT gather, bit 16 becomes 1 unless the payload has it.  A 0
    that software left in bit 11 stands, as on the processor; upstream `sets_bus_lock`.
    """
    ones = DR6_ACTIVE_LOW if sets_bus_lock else DR6_ACTIVE_LOW & ~DR6_BUS_LOCK
    after = dr6 & ~DR6_BREAKPOINTS | ones | payload & ~(PAYLOAD_ENABLED_BREAKPOINT | DR6_BUS_LOCK)
    after ^= payload & DR6_RTM
    return after & ~DR6_BUS_LOCK if payload & DR6_BUS_LOCK else after


def dr6_of_causes(payload: int) -> int:
    """A DR6 that shows these causes and nothing else."""
    return deliver_payload(DR6_ACTIVE_LOW, payload)


class DebugRegisters:
    """One vCPU's debug registers."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._state = backend.state
        self._has_bus_lock = False
        self._has_rtm = False
        self._own: tuple[int, int, int, int] | None = None
        """The guest's DR0-DR3 while a debugger's are in the register file."""
        self.quirks = quirks.NONE
        self.dr7 = DR7_FIXED_1  # the guest's, while a debugger's is in force
        self.reset()

    def reset(self) -> None:
        """RESET and INIT."""
        self._own = None
        self._backend.set_breakpoints((0, 0, 0, 0), DR7_FIXED_1)
        self._state.dr6 = DR6_ACTIVE_LOW

    def follow_cpuid(self, has_bus_lock: bool, has_rtm: bool) -> None:
        """Which active-low bits of DR6 the guest can write."""
        self._has_bus_lock, self._has_rtm = has_bus_lock, has_rtm

    # -- values ---------------------------------------------------------------------------------

    @property
    def db(self) -> tuple[int, int, int, int]:
        """The guest's DR0-DR3."""
        state = self._state
        return self._own or (state.dr0, state.dr1, state.dr2, state.dr3)

    @property
    def must_be_asked(self) -> bool:
        """Whether the processor would let the guest clear a bit of DR6 that its CPUID fixes."""
        if Quirk.DR6_FIXED_BY_PROCESSOR in self.quirks:
            return False
        return bool(self.fixed & ~int(self._state.dr6_fixed))

    @property
    def fixed(self) -> int:
        """The bits of DR6 that read as 1 (kvm_dr6_fixed)."""
        fixed = DR6_FIXED_1
        if not self._has_rtm:
            fixed |= DR6_RTM
        if not self._has_bus_lock:
            fixed |= DR6_BUS_LOCK
        return fixed

    def get_dr7(self) -> int:
        """The guest's DR7."""
        return self.dr7 if self._own is not None else self._state.dr7

    def get(self, number: int) -> int:
        """kvm_get_dr; DR4 and DR5 are DR6 and DR7."""
        if number < 4:
            return self.db[number]
        return self._state.dr6 if number in (4, 6) else self.get_dr7()

    def set(self, number: int, word: int) -> bool:
        """kvm_set_dr; False where the guest deserves #GP."""
        if number < 4:
            db = list(self.db)
            db[number] = word
            self.set_all(db, self.get_dr7())
            return True
        if word & DR_UPPER:
            return False
        if number in (4, 6):
            self._state.dr6 = word & DR6_VOLATILE | self.fixed
        else:
            self.set_all(self.db, word & DR7_VOLATILE | DR7_FIXED_1)
        return True

    def set_all(self, db: Sequence[int], dr7: int) -> None:
        """The guest's DR0-DR3 and DR7, as they are given."""
        if self._own is not None:
            self._own = (db[0], db[1], db[2], db[3])
            self.dr7 = dr7
        else:
            self._backend.set_breakpoints(db, dr7)

    def deliver(self, payload: int) -> None:
        """A #DB with this payload is about to reach the guest."""
        sets_bus_lock = Quirk.DR6_BUS_LOCK_SET in self.quirks
        self._state.dr6 = deliver_payload(self._state.dr6, payload, sets_bus_lock)

    def clear_general_detect(self) -> None:
        """As the processor does when it delivers a #DB itself; injection does not."""
        if self.get_dr7() & DR7_GD:
            self.set_all(self.db, self.get_dr7() & ~DR7_GD)

    # -- a debugger's ---------------------------------------------------------------------------

    def lend(self, db: Sequence[int], dr7: int) -> None:
        """The debugger's breakpoints take the place of the guest's."""
        if self._own is None:
            self._own, self.dr7 = self.db, self._state.dr7
        self._backend.set_breakpoints(db, dr7)

    def give_back(self) -> None:
        """The guest's breakpoints count again."""
        if self._own is not None:
            own, self._own = self._own, None
            self._backend.set_breakpoints(own, self.dr7)
