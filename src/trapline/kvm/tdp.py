"""The second stage of a VM's paging (KVM's TDP MMU): tables made as the guest touches its memory.

Physical memory is the VMM's own address space: an entry holds the host virtual address of what it
maps, and the largest page that slot and addresses allow.  Which bits an entry has, the vendors say.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from typing import Final

from trapline.arch.paging import PAGE_SIZE, PTE_BASE
from trapline.kvm.mmu import Slot, Slots

_CHUNK: Final = 64  # tables that are allocated at a time
_LEVELS: Final = (39, 30, 21, 12)


@dataclass(frozen=True, slots=True)
class Format:
    """The bits of the entries."""

    table: int
    """Of an entry that leads to a table."""
    page: int
    """Of one that maps a page which may not be written."""
    write: int
    large: int


class Tables:
    """One root and its tables; never shrinks, a changed memory map gets a new one."""

    def __init__(self, format: Format) -> None:
        self._format = format
        self._chunks: list[mmap.mmap] = []
        self._tables: dict[int, memoryview] = {}
        self._free: list[int] = []
        self.root = self._new_table()
        """Its address."""

    def map(self, guest_physical: int, slot: Slot) -> None:
        """Map the page around an address of this slot."""
        format, shift = self._format, _largest(guest_physical, slot)
        table = self.root
        for level in _LEVELS:
            entries = self._tables[table]
            index = guest_physical >> level & 511
            if level == shift:
                start = guest_physical & -1 << shift
                entry = slot.host + start - slot.guest_physical | format.page
                entry |= 0 if slot.is_read_only else format.write
                entries[index] = entry | (format.large if shift > 12 else 0)
                return
            if not entries[index]:
                entries[index] = self._new_table() | format.table
            table = entries[index] & PTE_BASE

    def leaf(self, guest_physical: int) -> tuple[int, int]:
        """The last entry on the way to an address, and the shift of what it covers."""
        table = self.root
        for level in _LEVELS:
            entry = self._tables[table][guest_physical >> level & 511]
            if level == 12 or not entry or entry & self._format.large:
                break
            table = entry & PTE_BASE
        return entry, level

    def _new_table(self) -> int:
        if not self._free:
            chunk = mmap.mmap(-1, _CHUNK * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            start = ctypes.addressof(ctypes.c_char.from_buffer(chunk))
            self._chunks.append(chunk)
            words = memoryview(chunk).cast("Q")
            for i in range(_CHUNK):
                table = start + i * PAGE_SIZE
                self._tables[table] = words[512 * i : 512 * (i + 1)]
                self._free.append(table)
        return self._free.pop()


class CurrentTables:
    """The tables for the memory map as it is, which all processors of a VM share."""

    def __init__(self, format: Format) -> None:
        self._format = format
        self._generation = -1
        self._tables: Tables | None = None

    def get(self, slots: Slots) -> Tables:
        with slots.lock:
            if self._tables is None or self._generation != slots.generation:
                self._generation, self._tables = slots.generation, Tables(self._format)
            return self._tables


def _largest(guest_physical: int, slot: Slot) -> int:
    """The shift of the largest page around the address that lies in the slot, aligned alike."""
    offset = slot.host - slot.guest_physical
    for shift in (30, 21):
        size = 1 << shift
        start = guest_physical & -size
        if not offset & size - 1 and slot.guest_physical <= start and start + size <= slot.end:
            return shift
    return 12
