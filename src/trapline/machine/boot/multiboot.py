"""Multiboot images, version 1, as QEMU's -kernel starts them.

"Multiboot Specification version 0.6.96"; what it leaves open is as QEMU has it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from trapline.machine import layout
from trapline.machine.boot.elf import MAGIC as ELF_MAGIC
from trapline.machine.boot.elf import Elf
from trapline.machine.boot.image import BadImage, Mode, Module, Part, Start, place
from trapline.machine.memory import Memory

_HEADER_MAGIC, LOADER_MAGIC = 0x1BADB002, 0x2BADB002
_SEARCHED = 8192
_PAGE_ALIGN, _MEMORY_INFORMATION, _VIDEO, _ADDRESSES = 1, 2, 4, 1 << 16
_MUST_UNDERSTAND = 0xFFFF
# Memory, boot device, command line, modules, map, loader's name.
_HAS = 1 | 2 | 4 | 8 | 0x40 | 0x200
_BOOT_DEVICE = 0x8000FFFF  # the first disk, no partition
_NAME = "trapline"
_INFORMATION = struct.Struct("<22I")
_ENTRY = struct.Struct("<IQQI")
_MODULE = struct.Struct("<4I")


@dataclass(frozen=True, slots=True)
class Header:
    """The header in an image; `addresses` are the five of an image that is not ELF."""

    offset: int
    flags: int
    addresses: tuple[int, int, int, int, int]


def find_header(data: bytes) -> Header | None:
    """The header in the first 8 KiB, with the right checksum."""
    for offset in range(0, min(len(data), _SEARCHED) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, offset)
        if magic == _HEADER_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            if flags & _ADDRESSES and len(data) < offset + 32:
                raise BadImage("the image ends within its multiboot header")
            if flags & _ADDRESSES:
                return Header(offset, flags, struct.unpack_from("<5I", data, offset + 12))
            return Header(offset, flags, (0, 0, 0, 0, 0))
    return None


def load(
    memory: Memory, data: bytes, header: Header, command_line: str, modules: Sequence[Module]
) -> Start:
    """The image, its modules and its boot information into memory."""
    unknown = header.flags & _MUST_UNDERSTAND & ~(_PAGE_ALIGN | _MEMORY_INFORMATION | _VIDEO)
    if unknown:
        raise BadImage(f"the multiboot header asks for what is not known here: {unknown:#x}")
    if header.flags & _ADDRESSES:
        entry, part = _load_by_addresses(memory, data, header)
        parts, (start, end) = [part], (part.physical, part.physical + part.size)
    elif data.startswith(ELF_MAGIC):
        elf = Elf(data)
        elf.load(memory)
        entry, parts, (start, end) = elf.physical_entry, elf.segments, elf.span
    else:
        raise BadImage("the multiboot image is neither ELF nor says where it belongs")
    if entry >> 32:
        raise BadImage(f"the entry {entry:#x} is beyond what 32-bit code can reach")
    information = _Information(memory, command_line, modules)
    record = layout.BOOT_RECORD
    record_end = record + information.size
    if record_end > layout.LOW_END or (start < record_end and record < end):
        record = _room_behind(end, information.size)
        end = record + information.size
    taken = range(record, record + information.size)
    information.place(record, _place_modules(memory, modules, end, taken))
    return Start(Mode.PROTECTED, entry, LOADER_MAGIC, record, parts)


def _load_by_addresses(memory: Memory, data: bytes, header: Header) -> tuple[int, Part]:
    place_of_header, start, end, bss_end, entry = header.addresses
    first = header.offset - (place_of_header - start)
    if start > place_of_header or first < 0:
        raise BadImage("the addresses in the multiboot header contradict each other")
    end = end or start + len(data) - first
    if not start <= end or first + end - start > len(data):
        raise BadImage("the image ends before its multiboot header says")
    bss_end = max(bss_end, end)
    place(memory, start, data[first : first + end - start], bss_end - start)
    return entry, Part(first, start, start, end - start, bss_end - start)


def _place_modules(memory: Memory, modules: Sequence[Module], end: int, taken: range) -> list[int]:
    """The modules behind the image, each on a page of its own and none where the boot information
    will be; where each begins."""
    starts = []
    for module in modules:
        start = _room_behind(end, len(module.data))
        if start < taken.stop and taken.start < start + len(module.data):
            start = _room_behind(taken.stop, len(module.data))
        starts.append(start)
        end = starts[-1] + len(module.data)
        if end >> 32 or end > memory.below:
            raise BadImage(
                f"there is no room for the module {module.string!r}: {len(module.data):,} bytes"
                f" behind {starts[-1]:#x}, on a machine with {memory.size // layout.MIB} MiB"
            )
        memory.write(starts[-1], module.data)
    return starts


def _room_behind(end: int, size: int) -> int:
    """The next page from where on there is conventional memory, or else extended memory."""
    page = end + 0xFFF & ~0xFFF
    return page if page + size <= layout.LOW_END else max(page, layout.MIB)


class _Information:
    """The boot information: the record, the memory map, the modules' entries, the strings."""

    def __init__(self, memory: Memory, command_line: str, modules: Sequence[Module]) -> None:
        self._memory, self._modules = memory, modules
        self._map = b"".join(
            _ENTRY.pack(_ENTRY.size - 4, region.start, region.size, region.kind)
            for region in memory.map()
        )
        strings = [module.string for module in modules]
        self._strings = [_terminated(text) for text in (_NAME, command_line, *strings)]
        entries = len(self._map) + len(modules) * _MODULE.size
        self.size = _INFORMATION.size + entries + sum(map(len, self._strings))

    def place(self, record: int, starts: Sequence[int]) -> None:
        """All of it to `record`; `starts` is where the modules are."""
        map_at = record + _INFORMATION.size
        modules_at = map_at + len(self._map)
        at, addresses = modules_at + len(starts) * _MODULE.size, []
        for text in self._strings:
            addresses.append(at)
            at += len(text)
        name, command_line, *strings = addresses
        entries = [
            _MODULE.pack(start, start + len(module.data), string, 0)
            for start, module, string in zip(starts, self._modules, strings, strict=True)
        ]
        fields = [0] * 22
        fields[0] = _HAS
        fields[1] = layout.LOW_END // layout.KIB
        fields[2] = (self._memory.below - layout.MIB) // layout.KIB
        fields[3] = _BOOT_DEVICE
        fields[4:7] = command_line, len(entries), modules_at
        fields[11:13] = len(self._map), map_at
        fields[16] = name
        parts = (_INFORMATION.pack(*fields), self._map, *entries, *self._strings)
        place(self._memory, record, b"".join(parts), self.size)


def _terminated(text: str) -> bytes:
    return text.encode(errors="surrogateescape") + b"\0"
