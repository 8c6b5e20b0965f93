"""QEMU's isa-debug-exit (port 0xF4): a write ends the run with the status (value << 1) | 1."""

from __future__ import annotations

from collections.abc import Callable


class DebugExit:
    """`end` is given the status, cut to eight bits as exit() cuts it."""

    def __init__(self, end: Callable[[int], None]) -> None:
        self._end = end

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._end((value << 1 | 1) & 0xFF)
