"""Which kind of image it is, and so who loads it."""

from __future__ import annotations

from collections.abc import Sequence

from trapline.machine import layout
from trapline.machine.boot import elf, flat, multiboot
from trapline.machine.boot.bios_data import write_bios_data
from trapline.machine.boot.image import BadImage, Mode, Module, Start
from trapline.machine.memory import Memory

_WRITABLE_PRESENT, _LARGE = 3, 1 << 7
_PAGE = 0x1000


def load(
    memory: Memory,
    data: bytes,
    command_line: str,
    address: int | None,
    modules: Sequence[Module] = (),
) -> Start:
    """An image into memory.  `address` has it taken as flat; the words are for multiboot."""
    write_bios_data(memory)
    flat.write_vectors(memory)
    header = None if address is not None else multiboot.find_header(data)
    if header is not None:
        return multiboot.load(memory, data, header, command_line, modules)
    if modules:
        raise BadImage("modules are for multiboot images, and this is none")
    if address is not None:
        return flat.load(memory, data, address)
    if not data.startswith(elf.MAGIC):
        return flat.load(memory, data, layout.BOOT_SECTOR)
    image = elf.Elf(data)
    if image.bits != 64:
        raise BadImage("the 32-bit ELF file has no multiboot header in its first 8 KiB")
    image.load(memory)
    _map_identically(memory)
    return Start(Mode.LONG, image.physical_entry, parts=image.segments)


def _map_identically(memory: Memory) -> None:
    """Page tables that map the first 4 GiB to themselves, in pages of 2 MiB."""
    top, pointers, first = (layout.PAGE_TABLES + i * _PAGE for i in range(3))
    tables = {
        top: [pointers | _WRITABLE_PRESENT],
        pointers: [first + i * _PAGE | _WRITABLE_PRESENT for i in range(4)],
        first: [i << 21 | _LARGE | _WRITABLE_PRESENT for i in range(4 * 512)],
    }
    for table, entries in tables.items():
        memory.write(table, b"".join(entry.to_bytes(8, "little") for entry in entries))
