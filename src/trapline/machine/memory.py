"""The guest's physical memory: a block of this process, and the map that guests are told."""

from __future__ import annotations

import ctypes
import mmap
from typing import NamedTuple

from trapline.kvm import Vm
from trapline.machine import layout

_PAGE = 4096
_ALIGNMENT = 2 * layout.MIB  # so that the hypervisor can map it in large pages
_NORESERVE = 0x4000
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
USABLE, RESERVED = 1, 2


class Region(NamedTuple):
    """One entry of the memory map, as the BIOS call E820 gives them."""

    start: int
    size: int
    kind: int


class Memory:
    """`size` bytes from 0; of much memory, what is beyond 3 GiB is moved to 4 GiB."""

    def __init__(self, size: int) -> None:
        if size < layout.MIB or size % _PAGE:
            raise ValueError("a machine has at least 1 MiB of memory, in whole pages")
        self.size = size
        try:
            self._block = mmap.mmap(-1, size + _ALIGNMENT, flags=_FLAGS)
        except (OSError, OverflowError, ValueError) as error:
            raise ValueError(f"cannot have {size} bytes of memory: {error}") from None
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._block))
        self._skip = -address % _ALIGNMENT
        self._host = address + self._skip
        self.below = size if size < layout.WHOLE_LIMIT else layout.BELOW_LIMIT
        self.above = size - self.below

    def attach(self, vm: Vm) -> None:
        vm.set_user_memory_region(0, 0, 0, self.below, self._host)
        if self.above:
            host = self._host + self.below
            vm.set_user_memory_region(1, 0, layout.ABOVE, self.above, host)

    def ram(self) -> list[Region]:
        """What is memory, without regard to who uses it."""
        regions = [Region(0, self.below, USABLE)]
        if self.above:
            regions.append(Region(layout.ABOVE, self.above, USABLE))
        return regions

    def map(self) -> list[Region]:
        """What is where; the firmware's part of the first MiB is memory, but not to be used."""
        regions = [
            Region(0, layout.LOW_END, USABLE),
            Region(layout.LOW_END, layout.EXTENDED_BIOS_DATA_END - layout.LOW_END, RESERVED),
            Region(layout.FIRMWARE, layout.FIRMWARE_END - layout.FIRMWARE, RESERVED),
        ]
        if self.below > layout.MIB:
            regions.append(Region(layout.MIB, self.below - layout.MIB, USABLE))
        if self.above:
            regions.append(Region(layout.ABOVE, self.above, USABLE))
        return regions

    def has(self, guest_physical: int, size: int) -> bool:
        """Whether all of a range is memory."""
        return self._offset(guest_physical, size) is not None

    def read(self, guest_physical: int, size: int) -> bytes:
        """The bytes there, or none where it is not memory."""
        offset = self._offset(guest_physical, size)
        return b"" if offset is None else self._block[offset : offset + size]

    def write(self, guest_physical: int, data: bytes) -> None:
        offset = self._offset(guest_physical, len(data))
        if offset is None:
            raise ValueError(f"{guest_physical:#x} is not memory")
        self._block[offset : offset + len(data)] = data

    def _offset(self, guest_physical: int, size: int) -> int | None:
        start, end = self._skip, guest_physical + size
        if guest_physical >= 0 and end <= self.below:
            return start + guest_physical
        if guest_physical >= layout.ABOVE and end <= layout.ABOVE + self.above:
            return start + self.below + guest_physical - layout.ABOVE
        return None
