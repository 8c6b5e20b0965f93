"""One thread a VM that wakes what waits for a time: the local APICs' timers.

A thread, as a vCPU in native code looks at no clock.  It starts with the first time it is given.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

_SECOND = 1_000_000_000


class Sleeper(Protocol):
    """What is woken."""

    def ring(self) -> None:
        """Its time has come, or did before it was changed: on the alarm's thread."""


class Alarm:
    """Times are those of `now`, in nanoseconds."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._times: dict[Sleeper, int] = {}
        self._next: int | None = None  # what the thread sleeps for
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @staticmethod
    def now() -> int:
        return time.monotonic_ns()

    def set(self, sleeper: Sleeper, deadline: int) -> None:
        """Wake it then, and not at the time set before."""
        with self._changed:
            self._times[sleeper] = deadline
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, name="APIC timers", daemon=True)
                self._thread.start()
            if self._next is None or deadline < self._next:
                self._changed.notify()

    def cancel(self, sleeper: Sleeper) -> None:
        with self._changed:
            self._times.pop(sleeper, None)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._times.clear()
            self._changed.notify()

    def _live(self) -> None:
        while True:
            with self._changed:
                if self._is_closed:
                    return
                self._next = min(self._times.values(), default=None)
                wait = None if self._next is None else (self._next - self.now()) / _SECOND
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                now = self.now()
                due = [sleeper for sleeper, deadline in self._times.items() if deadline <= now]
                for sleeper in due:
                    del self._times[sleeper]
            for sleeper in due:
                sleeper.ring()
