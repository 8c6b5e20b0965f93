"""The nested page tables of one VM, built as the guest touches its memory.

Physical memory is the VMM's own address space: an entry holds the host virtual address of what it
maps, and the largest page that slot and addresses allow.
"""

from __future__ import annotations

import ctypes
import mmap

from trapline.arch.paging import PAGE_SIZE, PTE_A, PTE_BASE, PTE_D, PTE_P, PTE_PS, PTE_U, PTE_W
from trapline.kvm.mmu import Slot

_CHUNK = 64  # tables that are allocated at a time
_TABLE = PTE_P | PTE_W | PTE_U | PTE_A
# Entry 0 of the PAT: write-back.  The guest's own types come on top, for a bus lock on memory
# that the guest made uncacheable is one of the two things we look for.
_PAGE = PTE_P | PTE_U | PTE_A | PTE_D
_LEVELS = (39, 30, 21, 12)


class Npt:
    """One root and its tables; never shrinks, a changed memory map gets a new one."""

    def __init__(self) -> None:
        self._chunks: list[mmap.mmap] = []
        self._tables: dict[int, memoryview] = {}
        self._free: list[int] = []
        self.root = self._new_table()
        """For nCR3."""

    def map(self, guest_physical: int, slot: Slot) -> None:
        """Map the page around an address of this slot."""
        shift = _largest(guest_physical, slot)
        table = self.root
        for level in _LEVELS:
            entries = self._tables[table]
            index = guest_physical >> level & 511
            if level == shift:
                start = guest_physical & -1 << shift
                entry = slot.host + start - slot.guest_physical | _PAGE
                entry |= 0 if slot.is_read_only else PTE_W
                entries[index] = entry | (PTE_PS if shift > 12 else 0)
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
