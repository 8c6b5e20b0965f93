"""Which bytes of host memory are translated code: a bit for each byte of a page that holds any.

So a write to data beside code need not drop the code.  Native code (jit.runtime.slow) reads these
maps and goes on where all bits are clear.
"""

from __future__ import annotations

import ctypes
import mmap
import threading

_PAGE = 0x1000
_BYTES = _PAGE >> 3
_STRIDE = _BYTES + 16  # native code reads eight bytes from wherever it looks
_MANY = 512  # maps taken at once
_ALL = (1 << _PAGE) - 1


class CodeMaps:
    """The maps of processors on one memory.  The caller holds the lock that guards all of it.

    While a thread reads a page to translate it, every bit of its map is set: each write passes
    through Python then, and is seen.  A map stays where it is for good, as native code may be
    looking at it.
    """

    def __init__(self) -> None:
        self.addresses: dict[int, int] = {}
        """Where the map of a host page is."""
        self._chunks: list[mmap.mmap] = []
        self._free: list[memoryview] = []
        self._maps: dict[int, memoryview] = {}
        self._translated: dict[int, int] = {}
        self._reading: dict[int, set[int]] = {}  # pages by thread

    def begin(self, host_page: int) -> None:
        """This thread is about to read a page, to translate what is there."""
        self._reading.setdefault(threading.get_ident(), set()).add(host_page)
        self._show(host_page, _ALL)

    def end(self) -> None:
        """This thread has done so."""
        for host_page in self._reading.pop(threading.get_ident(), ()):
            if not self._is_read(host_page):
                self._show(host_page, self._translated.get(host_page, 0))

    def add(self, host: int, size: int) -> None:
        """Bytes within a page have been translated."""
        page = host & -_PAGE
        self._translated[page] = self._translated.get(page, 0) | _bits(host, size)

    def drop(self, host_page: int) -> None:
        """Nothing of a page is translated any more."""
        if self._translated.pop(host_page, 0) and not self._is_read(host_page):
            self._show(host_page, 0)

    def has(self, host: int, size: int) -> bool:
        """Whether a write to bytes within a page may change what has been translated."""
        page = host & -_PAGE
        return bool(self._translated.get(page, 0) & _bits(host, size)) or self._is_read(page)

    def keep_thread(self) -> None:
        """In the child of a host fork: the other threads stayed behind."""
        for thread in [one for one in self._reading if one != threading.get_ident()]:
            del self._reading[thread]

    def _is_read(self, host_page: int) -> bool:
        return any(host_page in pages for pages in self._reading.values())

    def _show(self, host_page: int, bits: int) -> None:
        where = self._maps.get(host_page)
        if where is None:
            where = self._take(host_page)
        where[:_BYTES] = bits.to_bytes(_BYTES, "little")

    def _take(self, host_page: int) -> memoryview:
        if not self._free:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            chunk = mmap.mmap(-1, _MANY * _STRIDE, flags=flags)
            self._chunks.append(chunk)
            view = memoryview(chunk)
            self._free = [view[i * _STRIDE : (i + 1) * _STRIDE] for i in range(_MANY)]
        where = self._maps[host_page] = self._free.pop()
        self.addresses[host_page] = ctypes.addressof(ctypes.c_char.from_buffer(where))
        return where


def _bits(host: int, size: int) -> int:
    return (1 << size) - 1 << (host & _PAGE - 1)
