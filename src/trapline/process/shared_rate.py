"""A limit on how often, counted over all processes: memory that forks share, and no lock.

lib/ratelimit.c, ___ratelimit.  A lock could stay taken when its holder is killed; here each step
is one compare-and-exchange.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable

from trapline.process.native import exchange

_MASK = 0xFFFFFFFF
_TICKS = 1024  # a second
_COUNT_BITS = 10
_MOST = (1 << _COUNT_BITS) - 1
_TIME_MASK = _MASK >> _COUNT_BITS


class SharedRate:
    """At most `burst` (up to 1023) in each `interval` of seconds, made before the first fork."""

    def __init__(self, burst: int, interval: float) -> None:
        if not 0 <= burst <= _MOST:
            raise ValueError(f"{burst} is more than is counted")
        self._burst, self._interval = burst, int(interval * _TICKS)
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        # When the interval began, with how many it has had in the low bits; and those refused.
        self._words = (ctypes.c_uint32 * 2).from_buffer(self._page)
        self._state = ctypes.addressof(self._words)
        self._refused = self._state + 4

    def take(self) -> int:
        """Which of its interval this is, from 1; 0 if there have been enough."""
        while True:
            before = self._words[0]
            count = before & _MOST
            now = int(time.monotonic() * _TICKS) & _TIME_MASK
            is_over = now - (before >> _COUNT_BITS) & _TIME_MASK >= self._interval
            if not count or is_over:
                count, after = 0, now << _COUNT_BITS | 1
            elif count >= self._burst:
                return 0
            else:
                after = before + 1
            if exchange(self._state, before, after) == before:
                return count + 1

    def refuse(self) -> None:
        """Count one that was kept back."""
        self._replace(lambda before: before + 1)

    def take_refused(self) -> int:
        """How many have been kept back since this was last asked."""
        return self._replace(lambda before: 0)

    def _replace(self, change: Callable[[int], int]) -> int:
        while True:
            before = self._words[1]
            if exchange(self._refused, before, change(before) & _MASK) == before:
                return before
