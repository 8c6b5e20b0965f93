"""The I/O ports: which device answers where, and how wide accesses are taken apart.

Nothing here knows what a device does.
"""

from __future__ import annotations

from typing import Protocol

from trapline.kvm import exits

PORTS = 1 << 16


class Device(Protocol):
    """What sits on ports: `offset` counts from the first of a range, `size` is in bytes."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


class PortBus:
    """A port nobody answers at reads as ones and swallows writes, as on a PC."""

    def __init__(self) -> None:
        self._ports: dict[int, tuple[Device, int, int]] = {}

    def attach(self, device: Device, port: int, size: int, widest: int = 1) -> None:
        """Put a device on `size` ports; an access wider than `widest` reaches it in bytes."""
        for offset in range(size):
            if port + offset in self._ports:
                raise ValueError(f"port {port + offset:#x} is taken")
            self._ports[port + offset] = (device, offset, widest)

    def read(self, port: int, size: int) -> int:
        place = self._ports.get(port)
        if place is not None and size <= place[2]:
            return place[0].read(place[1], size) & (1 << 8 * size) - 1
        if size == 1:
            return 0xFF
        parts = [self.read(port + i & PORTS - 1, 1) for i in range(size)]
        return int.from_bytes(bytes(parts), "little")

    def write(self, port: int, size: int, value: int) -> None:
        place = self._ports.get(port)
        if place is not None and size <= place[2]:
            place[0].write(place[1], size, value)
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
