"""Bus lock sites that native code only counts: the table `trapline_end_lock` looks in."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from typing import NamedTuple

from trapline.processor.buslock import Cause
from trapline.processor.jit.runtime import SITE_BITS, SITE_ENTRY

_ENTRIES = 1 << SITE_BITS
_WORDS = SITE_ENTRY // 8


class SiteTotal(NamedTuple):
    """What one site counted since it was last asked; the arguments of
    Observer.bus_lock_total."""

    rip: int
    next_rip: int
    cause: Cause
    size: int
    cpl: int
    linear: int
    times: int


class SiteTable:
    """One processor's table: rip, count, last linear address."""

    def __init__(self) -> None:
        size = _ENTRIES * SITE_ENTRY
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._words = memoryview(self._map).cast("Q")
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._facts: dict[int, tuple[int, int, int]] = {}

    @staticmethod
    def _at(rip: int) -> int:
        return ((rip >> SITE_BITS ^ rip) & _ENTRIES - 1) * _WORDS

    def claim(self, rip: int) -> SiteTotal | None:
        """Free the entry a site needs; what its owner had counted."""
        at = self._at(rip)
        owner = self._words[at]
        total = self._take(at, owner) if owner else None
        self._words[at] = 0
        return total

    def describe(self, rip: int, next_rip: int, size: int, cpl: int, linear: int) -> None:
        """From now on this site is counted; what its totals will say besides the count."""
        at = self._at(rip)
        self._facts[rip] = (next_rip, size, cpl)
        self._words[at + 1], self._words[at + 2] = 0, linear
        self._words[at] = rip

    def _take(self, at: int, rip: int) -> SiteTotal:
        next_rip, size, cpl = self._facts[rip]
        count, self._words[at + 1] = self._words[at + 1], 0
        return SiteTotal(rip, next_rip, Cause.SPLIT, size, cpl, self._words[at + 2], count)

    def drain(self) -> Iterator[SiteTotal]:
        """What every site has counted since the last time."""
        for at in range(0, _ENTRIES * _WORDS, _WORDS):
            if self._words[at] and self._words[at + 1]:
                yield self._take(at, self._words[at])
