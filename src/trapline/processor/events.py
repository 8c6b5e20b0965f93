"""What an observer may see.  Observers only look: nothing they do may change the guest."""

from __future__ import annotations

from typing import Protocol

from trapline.processor.buslock import BusLock, Cause, Outcome


class Observer(Protocol):
    """One per processor or shared by all; called on the thread of the processor it concerns."""

    def bus_lock(self, lock: BusLock, outcome: Outcome) -> None:
        """A bus lock was taken (or, with Outcome.AC, refused), its instruction is complete,
        and its consequence has been decided but not yet delivered."""

    def bus_lock_total(
        self, rip: int, next_rip: int, cause: Cause, size: int, cpl: int, linear: int, count: int
    ) -> None:
        """`count` further bus locks of one instruction that signalled nothing, `linear` the
        last one's address.  Called when native code hands over its counters, not per event."""

    def undefined(self, rip: int, code: bytes, text: str) -> None:
        """An instruction Trapline does not implement raised #UD."""
