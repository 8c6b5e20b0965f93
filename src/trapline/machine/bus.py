"""I/O ports and device memory: which device answers where, and how accesses are taken apart.

Nothing here knows what a device does.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple, Protocol

from trapline.kvm import exits

PORTS = 1 << 16


class Device(Protocol):
    """What sits on ports or in memory: `offset` counts from its first byte, `size` is in bytes."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


class _Port(NamedTuple):
    """A port's device, and the widest access that reaches it whole from here."""

    device: Device
    offset: int
    widest: int


class PortBus:
    """A port nobody answers at reads as ones and swallows writes, as on a PC."""

    def __init__(self) -> None:
        self._ports: dict[int, _Port] = {}

    def attach(self, device: Device, port: int, size: int, widest: int = 1) -> None:
        """Put a device on `size` ports; an access wider than `widest` reaches it in bytes."""
        for offset in range(size):
            if port + offset in self._ports:
                raise ValueError(f"port {port + offset:#x} is taken")
            self._ports[port + offset] = _Port(device, offset, min(widest, size - offset))

    def read(self, port: int, size: int) -> int:
        place = self._ports.get(port)
        if place is not None and size <= place.widest:
            return place.device.read(place.offset, size) & (1 << 8 * size) - 1
        if size == 1:
            return 0xFF
        parts = [self.read(port + i & PORTS - 1, 1) for i in range(size)]
        return int.from_bytes(bytes(parts), "little")

    def write(self, port: int, size: int, value: int) -> None:
        place = self._ports.get(port)
        if place is not None and size <= place.widest:
            place.device.write(place.offset, size, value)
        elif size > 1:
            for i in range(size):
                self.write(port + i & PORTS - 1, 1, value >> 8 * i & 0xFF)

    def serve(self, access: exits.Io) -> None:
        """Do an exit's IN or OUT, each of its `count` items."""
        size, data = access.size, access.data
        for start in range(0, access.count * size, size):
            if access.is_input:
                value = self.read(access.port, size)
                data[start : start + size] = value.to_bytes(size, "little")
            else:
                item = int.from_bytes(data[start : start + size], "little")
                self.write(access.port, size, item)


class _Window(NamedTuple):
    """A device's place in memory."""

    start: int
    end: int
    device: Device
    widest: int


class MemoryBus:
    """Device memory: what is no device's reads as ones and swallows writes.

    A device meets aligned powers of two, none wider than it takes.
    """

    def __init__(self) -> None:
        self._windows: list[_Window] = []

    def attach(self, device: Device, guest_physical: int, size: int, widest: int = 4) -> None:
        """Put a device at an address."""
        new = _Window(guest_physical, guest_physical + size, device, widest)
        if any(new.start < other.end and other.start < new.end for other in self._windows):
            raise ValueError(f"device memory {guest_physical:#x} is taken")
        bisect.insort(self._windows, new, key=lambda window: window.start)

    def read(self, guest_physical: int, size: int) -> bytes:
        data = b""
        while len(data) < size:
            window, at, piece = self._piece(guest_physical + len(data), size - len(data))
            if window is None:
                data += b"\xff" * piece
            else:
                value = window.device.read(at - window.start, piece) & (1 << 8 * piece) - 1
                data += value.to_bytes(piece, "little")
        return data

    def write(self, guest_physical: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            window, at, piece = self._piece(guest_physical + done, len(data) - done)
            if window is not None:
                value = int.from_bytes(data[done : done + piece], "little")
                window.device.write(at - window.start, piece, value)
            done += piece

    def serve(self, access: exits.Mmio) -> None:
        """Do an exit's load or store."""
        if access.is_write:
            self.write(access.guest_physical, bytes(access.data[: access.size]))
        else:
            access.data[: access.size] = self.read(access.guest_physical, access.size)

    def _piece(self, at: int, size: int) -> tuple[_Window | None, int, int]:
        """(whose it is, its address, how much of an access is done at once)."""
        window = self._find(at)
        if window is None:
            return None, at, 1
        piece = min(window.widest, at & -at or window.widest, 1 << size.bit_length() - 1)
        return window, at, piece

    def _find(self, at: int) -> _Window | None:
        index = bisect.bisect_right(self._windows, at, key=lambda window: window.start) - 1
        found = self._windows[index] if index >= 0 else None
        return found if found is not None and at < found.end else None
