"""Which bytes of its memory a process has changed since a certain moment.

Whoever lets a page be written notes it here first; what for is `vfork`'s business.
"""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

from trapline.process.areas import PAGE, PROT_WRITE

if TYPE_CHECKING:
    from trapline.process.memory import GuestMemory

_CHANGE = struct.Struct("<QI")  # linear address, size; then the bytes
_POINTED_AT = 16 * PAGE  # how far behind a system call's pointer the kernel is taken to write
_GAP = 16  # unchanged bytes that are sent along rather than a change be cut in two


class Journal:
    """The pages a process has written, as they were before."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._before: dict[int, bytes] = {}

    def touch(self, linear: int, size: int = _POINTED_AT) -> None:
        """These bytes may be written now."""
        first, last = linear & -PAGE, linear + max(size, 1) - 1 & -PAGE
        for area in self._memory.areas.between(first, last + PAGE):
            if area.prot & PROT_WRITE and not area.shared:
                for page in range(area.start, area.end, PAGE):
                    if page not in self._before:
                        self._before[page] = self._memory.read_some(page, PAGE)

    def changes(self) -> bytes:
        """What is different now, as a stream of changes."""
        parts = []
        for page, before in self._before.items():
            after = self._memory.read_some(page, PAGE)
            if after != before and len(after) == len(before):
                for start, end in _differences(before, after):
                    parts.append(_CHANGE.pack(page + start, end - start) + after[start:end])
        return b"".join(parts)


def _differences(before: bytes, after: bytes) -> list[tuple[int, int]]:
    """The ranges in which two pages differ."""
    ranges: list[tuple[int, int]] = []
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            if ranges and place - ranges[-1][1] < _GAP:
                ranges[-1] = (ranges[-1][0], place + 1)
            else:
                ranges.append((place, place + 1))
    return ranges


def apply_changes(memory: GuestMemory, stream: bytes) -> None:
    """Write what a child has changed; what the parent has given up meanwhile stays as it is."""
    at = 0
    while at + _CHANGE.size <= len(stream):
        linear, size = _CHANGE.unpack_from(stream, at)
        at += _CHANGE.size
        with contextlib.suppress(OSError):
            memory.write(linear, stream[at : at + size])
        at += size
