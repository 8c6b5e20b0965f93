"""QEMU's pc-testdev: what echoes (ports and a window of memory), what drives interrupt lines,
and a port that flushes.
"""

from __future__ import annotations

from collections.abc import Callable


class EchoPorts:
    """Four ports that read as they were written, at any size (0xE0; 0xE8 by bytes alone)."""

    def __init__(self) -> None:
        self._data = 0

    def at(self, offset: int) -> OnePort:
        """One of the four, to sit among other devices."""
        return OnePort(self, offset)

    def read(self, offset: int, size: int) -> int:
        return self._data >> 8 * offset

    def write(self, offset: int, size: int, value: int) -> None:
        mask = (1 << 8 * size) - 1 << 8 * offset & 0xFFFFFFFF
        self._data = self._data & ~mask | value << 8 * offset & mask


class OnePort:
    """One of the echo ports."""

    def __init__(self, ports: EchoPorts, offset: int) -> None:
        self._ports, self._offset = ports, offset

    def read(self, offset: int, size: int) -> int:
        return self._ports.read(self._offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._ports.write(self._offset, size, value)


class Window:
    """Device memory that keeps what is written to it (0xFF000000)."""

    SIZE = 0x10000

    def __init__(self) -> None:
        self._bytes = bytearray(self.SIZE)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")


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
