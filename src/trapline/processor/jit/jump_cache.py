"""The table that leads native code from a RIP to its record: beyond a page, for indirect jumps."""

from __future__ import annotations

import ctypes
import mmap

from trapline.processor.jit import layout

_MASK = (1 << layout.JUMP_CACHE_BITS) - 1
_MANY = 2000  # entries: beyond, the kernel empties the memory faster than we do
_SIZE = layout.JUMP_CACHE_ENTRY << layout.JUMP_CACHE_BITS


def jump_cache_index(rip: int) -> int:
    """Where a RIP sits in a jump cache; `leaving.jump_cache_offset` is the same."""
    return (rip ^ rip >> 12) & _MASK


class JumpCache:
    """RIP to record, for the code one privilege may run."""

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, _SIZE, flags=flags)
        self.words = memoryview(self._map).cast("Q")
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        # Entry 0 is the only one that a RIP of zero, as in fresh memory, belongs to.
        self.words[0] = 1
        self._filled: list[int] = []

    def put(self, rip: int, record: int) -> None:
        at = 2 * jump_cache_index(rip)
        self.words[at + 1] = record
        self.words[at] = rip
        if len(self._filled) <= _MANY:
            self._filled.append(at)

    def drop(self, rip: int) -> None:
        at = 2 * jump_cache_index(rip)
        if self.words[at] == rip:
            self.words[at] = 0 if at else 1

    def clear(self) -> None:
        """Forget everything; quickly where there is little or very much."""
        if len(self._filled) > _MANY:
            self._map.madvise(mmap.MADV_DONTNEED)
        else:
            for at in self._filled:
                self.words[at] = 0
        self.words[0] = 1
        self._filled.clear()
