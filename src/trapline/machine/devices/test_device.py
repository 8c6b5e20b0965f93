"""QEMU's pc-testdev: ports that echo, ports that drive interrupt lines, a port that flushes.

Neither its memory window nor its second echo ports, where the debug port is, are here.
"""

from __future__ import annotations

from collections.abc import Callable


class EchoPorts:
    """Four ports that read as they were written, at any size (0xE0)."""

    def __init__(self) -> None:
        self._data = 0

    def read(self, offset: int, size: int) -> int:
        return self._data >> 8 * offset

    def write(self, offset: int, size: int, value: int) -> None:
        mask = (1 << 8 * size) - 1 << 8 * offset & 0xFFFFFFFF
        self._data = self._data & ~mask | value << 8 * offset & mask


class InterruptPorts:
    """A port for each interrupt line: nonzero raises it, zero lowers it (0x2000)."""

    def __init__(self, set_line: Callable[[int, bool], None]) -> None:
        self._set_line = set_line

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._set_line(offset, bool(value))


class FlushPort:
    """Has the host take a page away and give it back (0xE4); memory here has no need of it."""

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing is cached that such a change would make stale."""
