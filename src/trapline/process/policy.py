"""What happens to a program that takes a bus lock: Linux's split_lock_detect, for one program.

Kernel documentation, "Bus lock detection and handling"; arch/x86/kernel/cpu/bus_lock.c.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from trapline.process.shared_rate import SharedRate

SIGBUS = 7


@dataclass
class Policy:
    """One of off, warn, fatal and ratelimit:N; the rate is that of all processes together."""

    mode: str = "warn"
    rate: int = 0
    _shared: SharedRate | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.mode == "ratelimit" and self._shared is None:
            self._shared = SharedRate(self.rate, 1)

    @property
    def detects(self) -> bool:
        """Whether DEBUGCTL.BLD is to be set."""
        return self.mode != "off"

    @property
    def warns(self) -> bool:
        return self.mode in ("warn", "ratelimit")

    def apply(self) -> int:
        """Called for each bus lock, on the thread that took it; the signal to send, or 0."""
        if self.mode == "fatal":
            return SIGBUS
        if self.mode == "ratelimit" and self._shared is not None:
            while not self._shared.take():
                time.sleep(0.02)
        return 0


def parse_policy(text: str) -> Policy:
    """A policy as the command line names it; ValueError says what is possible."""
    name, colon, number = text.partition(":")
    if name in ("off", "warn", "fatal") and not colon:
        return Policy(name)
    if name == "ratelimit" and number.isdecimal() and 1 <= int(number) <= 1000:
        return Policy(name, int(number))
    raise ValueError(f"{text!r} is no policy: off, warn, fatal or ratelimit:N (N from 1 to 1000)")
