"""How a guest's run can end, and the status that tells which.

The debug-exit port gives odd statuses only, so every other way has an even one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from trapline.kvm import exits


class How(Enum):
    """The ways, with their exit statuses; the debug-exit port brings its own."""

    DEBUG_EXIT = 1
    POWER_OFF = 0
    RESET = 4
    TIMEOUT = 124
    INTERRUPTED = 130
    HALTED = 132
    TRIPLE_FAULT = 134
    STUCK = 136

    @property
    def is_ordinary(self) -> bool:
        """Whether the guest itself asked for it."""
        return self in (How.DEBUG_EXIT, How.POWER_OFF, How.RESET)


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one run; `sentence` goes on from "the guest"."""

    how: How
    sentence: str
    status: int
    last_exit: exits.Exit | None = None
    vcpu: int = 0
    """Whose end it was."""


def ended(how: How, sentence: str, last_exit: exits.Exit | None = None, vcpu: int = 0) -> Ending:
    """An ending with its usual status."""
    return Ending(how, sentence, how.value, last_exit, vcpu)
