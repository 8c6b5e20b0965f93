"""The extended page tables of one VM, built as the guest touches its memory.

Physical memory is the VMM's own address space: an entry holds the host virtual address of what it
maps, and the largest page that slot and addresses allow.
"""

from __future__ import annotations

import ctypes
import mmap

from trapline.arch.paging import (
    EPT_EXECUTE,
    EPT_LARGE,
    EPT_READ,
    EPT_TYPE_SHIFT,
    EPT_WRITE,
    PAGE_SIZE,
    PTE_BASE,
    MemoryType,
)
from trapline.kvm.mmu import Slot

_CHUNK = 64  # tables that are allocated at a time
_TABLE = EPT_READ | EPT_WRITE | EPT_EXECUTE
# Write-back, and no IPAT: unlike KVM we honour the guest's PAT always, for a bus lock on memory
# that the guest made uncacheable is one of the two things we look for.
_PAGE = EPT_READ | EPT_EXECUTE | MemoryType.WB << EPT_TYPE_SHIFT
_LEVELS = (39, 30, 21, 12)
_POINTER = MemoryType.WB | 3 << 3  # walk of four levels, no accessed and dirty flags


class Ept:
    """One root and its tables; never shrinks, a changed memory map gets a new one."""

    def __init__(self) -> None:
        self._chunks: list[mmap.mmap] = []
        self._tables: dict[int, memoryview] = {}
        self._free: list[int] = []
        self._root = self._new_table()

    @property
    def pointer(self) -> int:
        """For the VMCS."""
        return self._root | _POINTER

    def map(self, guest_physical: int, slot: Slot) -> None:
        """Map the page around an address of this slot."""
        shift = _largest(guest_physical, slot)
        table = self._root
        for level in _LEVELS:
            entries = self._tables[table]
            index = guest_physical >> level & 511
            if level == shift:
                start = guest_physical & -1 << shift
                entry = slot.host + start - slot.guest_physical | _PAGE
                entry |= 0 if slot.is_read_only else EPT_WRITE
                entries[index] = entry | (EPT_LARGE if shift > 12 else 0)
                return
            if not entries[index]:
                entries[index] = self._new_table() | _TABLE
            table = entries[index] & PTE_BASE

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


def _largest(guest_physical: int, slot: Slot) -> int:
    """The shift of the largest page around the address that lies in the slot, aligned alike."""
    offset = slot.host - slot.guest_physical
    for shift in (30, 21):
        size = 1 << shift
        start = guest_physical & -size
        if not offset & size - 1 and slot.guest_physical <= start and start + size <= slot.end:
            return shift
    return 12
