"""Descriptors of the VMM itself: kept at high numbers, and closed to the program.

A program expects the lowest free numbers for its own files and may put a file at any of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
from collections.abc import Iterator

_ROOM = 256
_USUAL_MOST = 4096  # high enough; a table for a million descriptors costs each fork milliseconds


class OwnFiles:
    """A set of descriptors, and where new ones of the VMM go."""

    def __init__(self) -> None:
        self._own: set[int] = set()
        self.limits = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        usual = min(soft, _USUAL_MOST)
        unlimited = hard == resource.RLIM_INFINITY
        self._first = max(usual - _ROOM, usual // 2)
        if soft <= _USUAL_MOST and (unlimited or hard >= soft + _ROOM):
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft + _ROOM, hard))
                self._first = soft

    def __contains__(self, fd: object) -> bool:
        return fd in self._own

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._own))

    def keep(self, fd: int) -> int:
        """Take a descriptor over: its new number."""
        if fd in self._own:
            return fd
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, self._first)
        os.close(fd)
        self._own.add(high)
        return high

    def close(self, fd: int) -> None:
        """Close one of them."""
        self._own.discard(fd)
        os.close(fd)

    def forget_closed(self) -> None:
        """Some of them have been closed: their numbers are nobody's."""
        for fd in list(self._own):
            try:
                fcntl.fcntl(fd, fcntl.F_GETFD)
            except OSError:
                self._own.discard(fd)
