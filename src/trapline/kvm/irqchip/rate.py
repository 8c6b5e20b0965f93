"""How fast the time-stamp counter runs, measured against the host's clock."""

from __future__ import annotations

import time
from collections.abc import Callable

_LONG_ENOUGH = 5_000_000  # nanoseconds of measuring that give four digits


class TscRate:
    """Measures from when it is made to when it is first asked."""

    def __init__(self) -> None:
        self._start: tuple[int, int] | None = None
        self._per_second = 0

    def begin(self, tsc: Callable[[], int]) -> None:
        """Once there is a processor to ask."""
        if self._start is None:
            self._tsc = tsc
            self._start = time.monotonic_ns(), tsc()

    def nanoseconds(self, ticks: int) -> int:
        """How long so many ticks take."""
        return ticks * 1_000_000_000 // (self._per_second or self._measure())

    def _measure(self) -> int:
        assert self._start is not None
        began, first = self._start
        missing = began + _LONG_ENOUGH - time.monotonic_ns()
        if missing > 0:
            time.sleep(missing / 1_000_000_000)
        now, last = time.monotonic_ns(), self._tsc()
        self._per_second = max(1, (last - first) * 1_000_000_000 // (now - began))
        return self._per_second
