"""The guest's page tables: four levels in an arena of guest-physical memory that the VMM writes.

Knows entries, not areas: the caller says which pages to map and what they may do.
"""

from __future__ import annotations

from array import array

from trapline.arch.paging import PTE_A, PTE_D, PTE_NX, PTE_P, PTE_U, PTE_W

PAGE = 4096
TABLE_SPAN = 1 << 21  # the linear addresses that one last-level table maps
_DIRECTORY = PTE_P | PTE_W | PTE_U | PTE_A
_EMPTY = bytes(PAGE)


class PageTables:
    """A root and what hangs below it; `words` is the arena as 64-bit entries."""

    def __init__(self, words: memoryview, guest_physical: int, first_page: int) -> None:
        self._words = words
        self._base = guest_physical
        self._next = first_page
        self._limit = len(words) // 512
        self._tables: dict[int, int] = {}  # linear >> 21 -> index of the table's first word
        self._directories: dict[tuple[int, int], int] = {}
        self.root = self._new_table()
        self._kept: tuple[int, dict[int, int], dict[tuple[int, int], int]] | None = None

    @property
    def cr3(self) -> int:
        return self._physical(self.root)

    def map_run(self, linear: int, guest_physical: int, pages: int, flags: int) -> None:
        """Map `pages` pages that one last-level table holds and that lie in one row."""
        table = self._table(linear)
        first = table + (linear >> 12 & 511)
        start = guest_physical | flags
        run = array("Q", range(start, start + pages * PAGE, PAGE))
        self._words[first : first + pages] = memoryview(run)

    def entry(self, linear: int) -> int:
        """The last-level entry for this address, 0 where there is none."""
        table = self._tables.get(linear >> 21)
        return 0 if table is None else self._words[table + (linear >> 12 & 511)]

    def clear(self, start: int, end: int) -> bool:
        """Unmap [start, end); whether anything was mapped."""
        changed = False
        for table, first, last in self._slices(start, end):
            part = self._words[table + first : table + last]
            if any(part):
                part[:] = memoryview(_EMPTY)[: 8 * (last - first)].cast("Q")
                changed = True
        return changed

    def protect(self, start: int, end: int, flags: int) -> bool:
        """Give the mapped pages of [start, end) these flags; whether any right was taken away."""
        narrowed = False
        rights = PTE_P | PTE_W | PTE_U | PTE_NX
        for table, first, last in self._slices(start, end):
            for index in range(table + first, table + last):
                entry = self._words[index]
                if entry:
                    self._words[index] = entry & ~rights | flags & rights
                    lost = entry & ~flags & (PTE_P | PTE_W) | flags & ~entry & PTE_NX
                    narrowed = narrowed or bool(lost)
        return narrowed

    def map_page(self, linear: int, guest_physical: int, flags: int) -> None:
        self._words[self._table(linear) + (linear >> 12 & 511)] = guest_physical | flags

    def reserve(self, start: int, end: int) -> None:
        """Make the tables for [start, end) now; what there is by then, `forget` keeps."""
        for linear in range(start, end, TABLE_SPAN):
            self._table(linear)
        self._kept = self._next, dict(self._tables), dict(self._directories)

    def forget(self) -> None:
        """Drop every page mapped in the lower half, and all tables made since `reserve`."""
        assert self._kept is not None
        self._words[self.root : self.root + 256] = memoryview(_EMPTY)[:2048].cast("Q")
        self._next, tables, directories = self._kept
        self._tables, self._directories = dict(tables), dict(directories)

    def _slices(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """(table, first index, last index) of the tables there are for [start, end)."""
        first_key, last_key = start >> 21, (end - 1) >> 21
        if last_key - first_key > len(self._tables):
            keys = sorted(key for key in self._tables if first_key <= key <= last_key)
        else:
            keys = [key for key in range(first_key, last_key + 1) if key in self._tables]
        return [
            (
                self._tables[key],
                start >> 12 & 511 if key == first_key else 0,
                ((end - 1) >> 12 & 511) + 1 if key == last_key else 512,
            )
            for key in keys
        ]

    def _table(self, linear: int) -> int:
        key = linear >> 21
        table = self._tables.get(key)
        if table is None:
            parent = self.root
            for shift in (39, 30):
                parent = self._directory(parent, linear, shift)
            table = self._new_table()
            self._words[parent + (linear >> 21 & 511)] = self._physical(table) | _DIRECTORY
            self._tables[key] = table
        return table

    def _directory(self, parent: int, linear: int, shift: int) -> int:
        key = (shift, linear >> shift)
        directory = self._directories.get(key)
        if directory is None:
            directory = self._new_table()
            self._words[parent + (linear >> shift & 511)] = self._physical(directory) | _DIRECTORY
            self._directories[key] = directory
        return directory

    def _new_table(self) -> int:
        if self._next == self._limit:
            raise MemoryError("the guest's page tables have outgrown their arena")
        table = 512 * self._next
        self._next += 1
        self._words[table : table + 512] = memoryview(_EMPTY).cast("Q")
        return table

    def _physical(self, index: int) -> int:
        return self._base + 8 * index


def user_flags(writable: bool, executable: bool) -> int:
    """The flags of a user page; accessed and dirty are set beforehand, nobody asks for them."""
    flags = PTE_P | PTE_U | PTE_A
    if writable:
        flags |= PTE_W | PTE_D
    return flags if executable else flags | PTE_NX
