"""Multiboot images, version 1, as QEMU's -kernel starts them.

"Multiboot Specification version 0.6.96"; boot modules are not loaded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from trapline.machine import layout
from trapline.machine.boot.elf import MAGIC as ELF_MAGIC
from trapline.machine.boot.elf import Elf
from trapline.machine.boot.image import BadImage, Mode, Start, place
from trapline.machine.memory import Memory

_HEADER_MAGIC, LOADER_MAGIC = 0x1BADB002, 0x2BADB002
_SEARCHED = 8192
_PAGE_ALIGN, _MEMORY_INFORMATION, _VIDEO, _ADDRESSES = 1, 2, 4, 1 << 16
_MUST_UNDERSTAND = 0xFFFF
_HAS_MEMORY, _HAS_COMMAND_LINE, _HAS_MAP, _HAS_NAME = 1, 4, 0x40, 0x200
_NAME = b"trapline\0"
_INFORMATION = struct.Struct("<22I")
_ENTRY = struct.Struct("<IQQI")


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


def load(memory: Memory, data: bytes, header: Header, command_line: str) -> Start:
    """The image and its boot information into memory."""
    unknown = header.flags & _MUST_UNDERSTAND & ~(_PAGE_ALIGN | _MEMORY_INFORMATION | _VIDEO)
    if unknown:
        raise BadImage(f"the multiboot header asks for what is not known here: {unknown:#x}")
    if header.flags & _ADDRESSES:
        entry, start, end = _load_by_addresses(memory, data, header)
    elif data.startswith(ELF_MAGIC):
        elf = Elf(data)
        elf.load(memory)
        entry, (start, end) = elf.physical_entry, elf.span
    else:
        raise BadImage("the multiboot image is neither ELF nor says where it belongs")
    if entry >> 32:
        raise BadImage(f"the entry {entry:#x} is beyond what 32-bit code can reach")
    record = _write_information(memory, command_line, start, end)
    return Start(Mode.PROTECTED, entry, LOADER_MAGIC, record)


def _load_by_addresses(memory: Memory, data: bytes, header: Header) -> tuple[int, int, int]:
    place_of_header, start, end, bss_end, entry = header.addresses
    first = header.offset - (place_of_header - start)
    if start > place_of_header or first < 0:
        raise BadImage("the addresses in the multiboot header contradict each other")
    end = end or start + len(data) - first
    if not start <= end or first + end - start > len(data):
        raise BadImage("the image ends before its multiboot header says")
    bss_end = max(bss_end, end)
    place(memory, start, data[first : first + end - start], bss_end - start)
    return entry, start, bss_end


def _write_information(memory: Memory, command_line: str, start: int, end: int) -> int:
    """The boot information, in low memory if the image leaves room there; where it is."""
    words = command_line.encode(errors="surrogateescape") + b"\0"
    entries = b"".join(
        _ENTRY.pack(_ENTRY.size - 4, region.start, region.size, region.kind)
        for region in memory.map()
    )
    tail = entries + _NAME + words
    size = _INFORMATION.size + len(tail)
    record = layout.BOOT_RECORD
    if start < record + size and record < end:
        record = end + 0xFFF & ~0xFFF
    map_at = record + _INFORMATION.size
    name_at = map_at + len(entries)
    fields = [0] * 22
    fields[0] = _HAS_MEMORY | _HAS_COMMAND_LINE | _HAS_MAP | _HAS_NAME
    fields[1], fields[2] = layout.LOW_END // 1024, (memory.below - layout.MIB) // 1024
    fields[4] = name_at + len(_NAME)
    fields[11], fields[12] = len(entries), map_at
    fields[16] = name_at
    place(memory, record, _INFORMATION.pack(*fields) + tail, size)
    return record
