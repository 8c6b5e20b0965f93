"""Bus locks: which accesses take one, and what the processor then does.

The whole decision is in this file.  Before the access `before_access` may refuse it; at the
instruction boundary `after_instruction` says what the bus lock causes.  Who observes, who
delivers and who intercepts is decided elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

CACHE_LINE = 64


class Cause(Enum):
    """Why a locked access could not be done in the cache."""

    SPLIT = "split"
    UNCACHED = "uncached"


class Outcome(Enum):
    """What the architecture signalled for a bus lock."""

    NONE = "none"
    DB = "db"
    VM_EXIT = "vm_exit"
    AC = "ac"  # prevented: the access was refused by split-lock #AC


@dataclass(frozen=True, slots=True)
class BusLock:
    """One bus lock, as it happened.  `rip` is the culprit, `next_rip` what a trap reports."""

    rip: int
    next_rip: int
    linear: int
    physical: int
    size: int
    cpl: int
    cause: Cause


def classify(linear: int, size: int, write_back: bool) -> Cause | None:
    """Why a locked access locks the bus, or None where a cache lock is enough."""
    if not write_back:
        return Cause.UNCACHED
    if linear % CACHE_LINE + size > CACHE_LINE:
        return Cause.SPLIT
    return None
