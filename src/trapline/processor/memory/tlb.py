"""The translation tables that native code reads: three of 65,536 entries, one a privilege.

An entry: tag for reads, tag for writes, tag for locked updates, host address less linear address.
A tag is the page's linear address with its low twelve bits set.  Where the page holds code, that
for writes is one less, and the next word is where the map of the code is.
"""

from __future__ import annotations

import ctypes
import mmap

from trapline.processor.memory.page import BESIDE_CODE, READ, WRITE, Page
from trapline.processor.memory.types import WB

ENTRIES = 1 << 16
ENTRY_SIZE = 32
_MASK_64 = (1 << 64) - 1
# Beyond this many entries the kernel empties a table faster than we do.
_MANY = 3000


class Table:
    """One table, lazily resident, and which of its entries are filled."""

    def __init__(self) -> None:
        # Private: a forked processor must not share it with its parent.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, ENTRIES * ENTRY_SIZE, flags=flags)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.words = memoryview(self._map).cast("Q")
        self.filled: list[int] = []

    def clear(self) -> None:
        filled, words = self.filled, self.words
        if len(filled) > _MANY:
            self._map.madvise(mmap.MADV_DONTNEED)
        else:
            for at in filled:
                words[at] = words[at + 1] = words[at + 2] = 0
        filled.clear()


class Tlb:
    """The tables of one processor, and which host pages must not be written natively."""

    def __init__(self) -> None:
        self.tables = (Table(), Table(), Table())
        self.empty = Table()  # for code under alignment checking: every access asks Python
        self.code: set[int] = set()
        self.maps: dict[int, int] = {}
        """Where the maps of these pages are (processor.code_map)."""
        self._writable: dict[int, set[Page]] = {}
        self._beside: dict[int, set[Page]] = {}

    def fill(self, page: Page) -> None:
        """Offer a page to native code, as far as `page.quick` allows."""
        linear, quick = page.linear, page.quick
        at = linear >> 10 & 0x3FFFC
        table = self.tables[page.privilege]
        words, tag = table.words, linear | 0xFFF
        if len(table.filled) <= _MANY:
            table.filled.append(at)
        words[at + 3] = page.host - linear & _MASK_64
        words[at] = tag if quick & READ else 0
        if not quick & WRITE:
            words[at + 1] = words[at + 2] = 0
            where = self.maps.get(page.host) if quick & BESIDE_CODE else None
            if where is not None:
                words[at + 2], words[at + 1] = where, tag - 1
                self._beside.setdefault(page.host, set()).add(page)
            return
        words[at + 1] = tag
        words[at + 2] = tag if page.memory_type == WB else 0
        self._writable.setdefault(page.host, set()).add(page)
        if page.host in self.code:  # another processor's thread found code here meanwhile
            self.deny_write(page.host)

    def drop(self, linear: int, privilege: int) -> None:
        """Take a page away from native code."""
        at = linear >> 10 & 0x3FFFC
        words, tag = self.tables[privilege].words, linear | 0xFFF
        for i in (at, at + 1, at + 2):
            if words[i] == tag:
                words[i] = 0
        if words[at + 1] == tag - 1:
            words[at + 1] = 0

    def flush(self) -> None:
        for table in self.tables:
            if table.filled:
                table.clear()
        self._writable.clear()
        self._beside.clear()

    def deny_write(self, host_page: int) -> bool:
        """From now on writes to this host page pass through Python: it holds translated code.
        Whether native code could write there so far."""
        self.code.add(host_page)
        # A copy: the processor's own thread may be offering one more, and then looks at `code`.
        pages = tuple(self._writable.pop(host_page, ()))
        for page in pages:
            page.quick &= ~WRITE
            at = page.linear >> 10 & 0x3FFFC
            words, tag = self.tables[page.privilege].words, page.linear | 0xFFF
            for i in (at + 1, at + 2):
                if words[i] == tag:
                    words[i] = 0
        return bool(pages) or host_page in self._beside

    def allow_write(self, host_page: int) -> None:
        """The host page holds no translated code any more."""
        self.code.discard(host_page)
        # Native code asks anew, and the whole page is its own again.
        for page in tuple(self._beside.pop(host_page, ())):
            page.quick &= ~BESIDE_CODE
            at = page.linear >> 10 & 0x3FFFC
            words, tag = self.tables[page.privilege].words, page.linear | 0xFFF
            if words[at + 1] == tag - 1:
                words[at + 1] = 0
