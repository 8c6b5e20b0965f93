"""Which function or which global an address belongs to, from an image's symbol tables.

Addresses are link-time addresses of one image; the names are the linker's, not demangled.
"""

from __future__ import annotations

import bisect
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from trapline.trace.image import Image

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

STT_OBJECT, STT_FUNC, STT_TLS, STT_GNU_IFUNC, STT_NOTYPE = 1, 2, 6, 10, 0
SHN_UNDEF = 0
SHF_ALLOC, SHF_EXECINSTR = 2, 4
_CODE = (STT_FUNC, STT_GNU_IFUNC)


class Symbol(NamedTuple):
    """One name of a symbol table, and how far into it an address lies is `vaddr - value`."""

    value: int
    size: int
    name: str


class _Entry(NamedTuple):
    value: int
    size: int
    rank: int  # a global name before a weak one before a local one
    name_offset: int
    section: int


class Symbols:
    """The functions and objects of one image, found by address."""

    def __init__(self, image: Image) -> None:
        self._tables: list[_Table] = []
        for elf, section in image.symbol_tables():
            self._tables.append(_Table(elf, section))

    def function(self, vaddr: int) -> Symbol | None:
        """The function that holds `vaddr`, or None."""
        return self._find("code", vaddr)

    def data(self, vaddr: int) -> Symbol | None:
        """The global object that holds `vaddr`, or None."""
        return self._find("objects", vaddr)

    def thread_local(self, offset: int) -> Symbol | None:
        """The thread-local object at an offset into the image's TLS block, or None."""
        return self._find("locals", offset)

    def _find(self, kind: str, vaddr: int) -> Symbol | None:
        for table in self._tables:
            found = table.find(kind, vaddr)
            if found is not None:
                return found
        return None


class _Table:
    """One .symtab or .dynsym, read in one go: a library has ten thousand symbols."""

    def __init__(self, elf: ELFFile, section: Any) -> None:
        self._names: bytes = section.stringtable.data()
        self._ends, executable = _section_ends(elf)
        kinds: dict[str, list[_Entry]] = {"code": [], "objects": [], "locals": []}
        for entry, kind in _entries(elf.elfclass, section.data()):
            if kind == STT_NOTYPE and entry.section in self._ends:  # a label of assembly code
                entry = entry._replace(rank=entry.rank + 3)
                kind = STT_FUNC if entry.section in executable else STT_OBJECT
            if kind in _CODE:
                kinds["code"].append(entry)
            elif kind == STT_OBJECT:
                kinds["objects"].append(entry)
            elif kind == STT_TLS:
                kinds["locals"].append(entry)
        self._sorted = {name: sorted(found) for name, found in kinds.items()}

    def find(self, kind: str, vaddr: int) -> Symbol | None:
        """The best name whose extent holds the address; else a label without an extent."""
        entries = self._sorted[kind]
        at = bisect.bisect_right(entries, (vaddr, 1 << 64))
        best: _Entry | None = None
        for index in range(at - 1, max(at - 32, -1), -1):
            entry = entries[index]
            if best is not None and entry.value != best.value:
                break
            if vaddr < entry.value + entry.size and (best is None or entry.rank < best.rank):
                best = entry
        if best is None and at and kind != "locals":
            best = self._label(entries, at - 1, vaddr)
        return None if best is None else Symbol(best.value, best.size, self._name(best))

    def _label(self, entries: list[_Entry], at: int, vaddr: int) -> _Entry | None:
        """A label without a size reaches to the next symbol or the end of its section."""
        value = entries[at].value
        first = bisect.bisect_left(entries, (value,))
        labels = [e for e in entries[first : at + 1] if e.size == 0]
        reaching = [e for e in labels if vaddr < self._ends.get(e.section, 0)]
        return min(reaching, key=lambda entry: entry.rank, default=None)

    def _name(self, entry: _Entry) -> str:
        end = self._names.find(b"\0", entry.name_offset)
        name = self._names[entry.name_offset : end].decode("utf-8", "replace")
        return name.split("@", 1)[0]


def _section_ends(elf: ELFFile) -> tuple[dict[int, int], set[int]]:
    """Where each loaded section ends, and which of them hold code."""
    ends, executable = {}, set()
    for index, section in enumerate(elf.iter_sections()):
        if section["sh_flags"] & SHF_ALLOC:
            ends[index] = section["sh_addr"] + section["sh_size"]
            if section["sh_flags"] & SHF_EXECINSTR:
                executable.add(index)
    return ends, executable


def _entries(elfclass: int, content: bytes) -> list[tuple[_Entry, int]]:
    found = []
    layout = "<IBBHQQ" if elfclass == 64 else "<IIIBBH"
    usable = len(content) - len(content) % struct.calcsize(layout)
    for fields in struct.iter_unpack(layout, content[:usable]):
        if elfclass == 64:
            name, kind, _, section, value, size = fields
        else:
            name, value, size, kind, _, section = fields
        if section == SHN_UNDEF or not name:
            continue
        rank = {1: 0, 10: 0, 2: 1}.get(kind >> 4, 2)  # STB_GLOBAL, STB_GNU_UNIQUE, STB_WEAK
        found.append((_Entry(value, size, rank, name, section), kind & 15))
    return found
