"""What the running instruction has begun with and done that the boundary after it must know."""

from __future__ import annotations

from typing import NamedTuple

from trapline.processor.buslock import Cause


class LockedAccess(NamedTuple):
    """A bus lock as the access saw it."""

    rip: int
    linear: int
    physical: int
    size: int
    cpl: int
    cause: Cause


class Notes:
    """One processor's.  `lock` and `breakpoints` are written by the accesses, `is_unfinished` by
    the core and microcode, the others by the boundary before the instruction."""

    __slots__ = ("lock", "breakpoints", "stepping", "shadow", "resume", "is_unfinished")

    def __init__(self) -> None:
        self.lock: LockedAccess | None = None
        self.breakpoints = 0  # data and I/O breakpoints hit, as a #DB payload
        self.stepping = False  # RFLAGS.TF was set
        self.shadow = 0  # the interrupt shadow it ran in
        self.resume = False  # RFLAGS.RF was set
        self.is_unfinished = False  # a REP instruction has iterations left

    def drop(self) -> None:
        """The instruction did not complete, or an event took its place."""
        self.lock = None
        self.breakpoints = 0
        self.stepping = self.is_unfinished = False
