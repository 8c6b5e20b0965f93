"""Physical memory as a processor sees it: where RAM is in the host, and devices that are not RAM.

A processor inside the hypervisor uses `HostBus`: there a physical address is a host address.
`Ram` gives a bare processor memory of its own at low addresses.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Protocol

from trapline.processor.memory.host import HOST_LIMIT


class Bus(Protocol):
    """What stands behind a processor's physical addresses and I/O ports."""

    def host(self, physical: int) -> int | None:
        """The host address of a byte of RAM (its whole 4 KiB page is RAM), None for a device."""

    def read_device(self, physical: int, size: int) -> int: ...

    def write_device(self, physical: int, size: int, word: int) -> None: ...

    def read_port(self, port: int, size: int) -> int: ...

    def write_port(self, port: int, size: int, word: int) -> None: ...


class Device(Protocol):
    """Registers behind a range of physical addresses or ports, by offset from its start."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, word: int) -> None: ...


class _Nobody:
    """Where nothing answers: reads give all ones, writes are lost."""

    def read(self, offset: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, word: int) -> None:
        pass


_NOBODY = _Nobody()


class _Ranges:
    """Devices by address."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, Device]] = []

    def attach(self, start: int, size: int, device: Device) -> None:
        self._ranges.append((start, start + size, device))

    def find(self, at: int) -> tuple[Device, int]:
        for start, end, device in self._ranges:
            if start <= at < end:
                return device, at - start
        return _NOBODY, 0


class HostBus:
    """The bus under the hypervisor: every physical address is a host address, no device is met."""

    def host(self, physical: int) -> int | None:
        return physical if physical < HOST_LIMIT else None

    def read_device(self, physical: int, size: int) -> int:
        return _NOBODY.read(0, size)

    def write_device(self, physical: int, size: int, word: int) -> None:
        pass

    def read_port(self, port: int, size: int) -> int:
        return _NOBODY.read(0, size)

    def write_port(self, port: int, size: int, word: int) -> None:
        pass


class Ram:
    """RAM from physical address 0 up, and devices above it or in between."""

    def __init__(self, size: int) -> None:
        if size % mmap.PAGESIZE:
            raise ValueError(f"RAM is made of whole pages, not {size:#x} bytes")
        self.size = size
        self.bytes = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        self._devices = _Ranges()
        self._ports = _Ranges()
        self._device_pages: set[int] = set()

    def attach(self, start: int, size: int, device: Device) -> None:
        """Put a device at a range of physical addresses; it hides RAM of the pages it touches."""
        self._devices.attach(start, size, device)
        self._device_pages.update(range(start >> 12, (start + size + 0xFFF) >> 12))

    def attach_port(self, first: int, count: int, device: Device) -> None:
        """Put a device at a range of I/O ports."""
        self._ports.attach(first, count, device)

    def host(self, physical: int) -> int | None:
        if physical >= self.size or physical >> 12 in self._device_pages:
            return None
        return self.start + physical

    def read_device(self, physical: int, size: int) -> int:
        device, offset = self._devices.find(physical)
        return device.read(offset, size)

    def write_device(self, physical: int, size: int, word: int) -> None:
        device, offset = self._devices.find(physical)
        device.write(offset, size, word)

    def read_port(self, port: int, size: int) -> int:
        device, offset = self._ports.find(port)
        return device.read(offset, size)

    def write_port(self, port: int, size: int, word: int) -> None:
        device, offset = self._ports.find(port)
        device.write(offset, size, word)

    def load(self, physical: int, content: bytes) -> None:
        """Copy bytes into RAM, as a loader does before the processor starts."""
        self.bytes[physical : physical + len(content)] = content
