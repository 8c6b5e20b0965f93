"""Descriptors of the VMM itself: kept at high numbers, and closed to the program.

A program expects the lowest free numbers for its own files and may put a file at any of them; its
RLIMIT_NOFILE is the host's, which only counts when a number is given out (fs/file.c, alloc_fd).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import threading
from collections.abc import Iterator

_ROOM = 256
_MOST = 65536  # high enough; a table for a million descriptors costs each fork milliseconds


class OwnFiles:
    """A set of descriptors, and where new ones of the VMM go."""

    def __init__(self) -> None:
        self._own: set[int] = set()
        self.limits = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        top = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
        self._first = max(top - _ROOM, top // 2)
        self._allowed = soft
        self._lock = threading.Lock()
        self._users = 0  # of the room above the program's limit

    def __contains__(self, fd: object) -> bool:
        return fd in self._own

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._own))

    def allow(self, soft: int) -> None:
        """From now on the program gets numbers below this.  One there is always: poll, which the
        VMM waits with, takes no more than the limit."""
        with self._lock:
            self._allowed = max(soft, 1)
            self._set_limit()

    @contextlib.contextmanager
    def room(self) -> Iterator[None]:
        """While files of the VMM are made, the program's limit does not hold."""
        with self._lock:
            self._users += 1
            self._set_limit()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._set_limit()

    def _set_limit(self) -> None:
        hard = self.limits[1]
        allowed = hard if self._users else self._allowed
        if hard != resource.RLIM_INFINITY:
            allowed = min(allowed, hard)
        elif self._users:
            allowed = max(_MOST, self._allowed)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))

    def keep(self, fd: int) -> int:
        """Take a descriptor over: its new number."""
        if fd in self._own:
            return fd
        with self.room():
            high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, self._first)
        os.close(fd)
        self._own.add(high)
        return high

    def close(self, fd: int) -> None:
        """Close one of them."""
        self._own.discard(fd)
        os.close(fd)

    def after_fork(self) -> None:
        """In a child: whoever else was making files is not here."""
        self._lock = threading.Lock()
        self._users = 0
        self._set_limit()

    def forget_closed(self) -> None:
        """Some of them have been closed: their numbers are nobody's."""
        for fd in list(self._own):
            try:
                fcntl.fcntl(fd, fcntl.F_GETFD)
            except OSError:
                self._own.discard(fd)
