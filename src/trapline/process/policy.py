"""What happens to a program that takes a bus lock: Linux's split_lock_detect, for one program.

Kernel documentation, "Bus lock detection and handling"; arch/x86/kernel/cpu/bus_lock.c.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

SIGBUS = 7


@dataclass
class Policy:
    """One of off, warn, fatal and ratelimit:N; shared by the threads of a process."""

    mode: str = "warn"
    rate: int = 0
    _taken: int = field(default=0, repr=False)
    _begin: float = field(default=0.0, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

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
        if self.mode == "ratelimit":
            while not self._may_go():
                time.sleep(0.02)
        return 0

    def _may_go(self) -> bool:
        """At most `rate` bus locks begin in each second (the kernel's ___ratelimit)."""
        with self._lock:
            now = time.monotonic()
            if now - self._begin >= 1:
                self._begin, self._taken = now, 0
            if self._taken >= self.rate:
                return False
            self._taken += 1
            return True


def parse_policy(text: str) -> Policy:
    """A policy as the command line names it; ValueError says what is possible."""
    name, colon, number = text.partition(":")
    if name in ("off", "warn", "fatal") and not colon:
        return Policy(name)
    if name == "ratelimit" and number.isdecimal() and 1 <= int(number) <= 1000:
        return Policy(name, int(number))
    raise ValueError(f"{text!r} is no policy: off, warn, fatal or ratelimit:N (N from 1 to 1000)")
