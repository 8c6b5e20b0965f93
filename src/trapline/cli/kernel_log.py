"""The kernel's words about bus locks, with the kernel's limit on how often it says them.

arch/x86/kernel/cpu/bus_lock.c, pr_warn_ratelimited(); lib/ratelimit.c.
"""

from __future__ import annotations

import threading
import time

INTERVAL = 5.0  # DEFAULT_RATELIMIT_INTERVAL
BURST = 10  # DEFAULT_RATELIMIT_BURST


class KernelLog:
    """Says at most ten lines in five seconds, and later how many it kept to itself."""

    def __init__(self) -> None:
        self.forked()

    def forked(self) -> None:
        """In a new child: nobody else holds the lock."""
        self._lock = threading.Lock()
        self._begin: float | None = None
        self._said = self._missed = 0

    def bus_lock(self, name: str, tid: int, rip: int) -> str:
        """What to print for a bus lock: lines, or nothing."""
        with self._lock:
            now = time.monotonic()
            suppressed = ""
            if self._begin is None or now - self._begin >= INTERVAL:
                if self._missed:
                    suppressed = f"handle_bus_lock: {self._missed} callbacks suppressed\n"
                self._begin, self._said, self._missed = now, 0, 0
            if self._said >= BURST:
                self._missed += 1
                return ""
            self._said += 1
        return (
            f"{suppressed}x86/split lock detection: #DB: {name}/{tid}"
            f" took a bus_lock trap at address: {rip:#x}\n"
        )
