"""Images that cannot be started, each for a reason that is said."""

from __future__ import annotations

import struct

import pytest

from tests.machine import guests
from tests.machine.guests import END, MIB
from trapline.machine import BadImage
from trapline.machine.boot import load
from trapline.machine.memory import Memory

ELF = guests.elf64(END)
MULTIBOOT = guests.multiboot(END)


def changed(image: bytes, offset: int, form: str, value: int) -> bytes:
    data = bytearray(image)
    struct.pack_into(form, data, offset, value)
    return bytes(data)


@pytest.fixture
def memory() -> Memory:
    return Memory(16 * MIB)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (b"", "the image is empty"),
        (ELF[:4], "truncated, or not for a little-endian"),
        (ELF[:40], "ends within its header"),
        (ELF[:100], "ends within its program headers"),
        (ELF[:-1], "ends within a segment"),
        (changed(ELF, 5, "B", 2), "not for a little-endian"),
        (changed(ELF, 18, "<H", 183), "for machine 183, not for x86"),
        (changed(ELF, 16, "<H", 1), "not an executable"),
        (changed(ELF, 56, "<H", 0), "no program headers"),
        (changed(ELF, 56, "<H", 65535), "ends within its program headers"),
        (changed(ELF, 32, "<Q", 1 << 63), "ends within its program headers"),
        (changed(ELF, 64, "<I", 4), "nothing to load"),
        (changed(ELF, 64, "<I", 3), "a program for an operating system, not a guest"),
        (changed(ELF, 64 + 32, "<Q", 1 << 63), "ends within a segment"),
        (changed(ELF, 64 + 40, "<Q", 1), "larger in the file than in memory"),
        (changed(ELF, 64 + 40, "<Q", 1 << 62), "which is not memory"),
        (changed(ELF, 64 + 24, "<Q", (1 << 64) - 8), "which is not memory"),
        (changed(ELF, 64 + 24, "<Q", 0xE0000), "which the firmware occupies"),
        (changed(ELF, 24, "<Q", 0x10), "lies in no segment"),
        (b"\x7fELF\1\1\1" + bytes(9) + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0, 52, 0, 0, 52, 32,
         1, 0, 0, 0) + struct.pack("<8I", 1, 0, MIB, MIB, 16, 16, 7, 0), "no multiboot header"),
        (MULTIBOOT[:20], "ends within its multiboot header"),
        (MULTIBOOT[:34], "ends before its multiboot header says"),
        (changed(MULTIBOOT, 12, "<I", 0), "contradict each other"),
        (changed(MULTIBOOT, 24, "<I", 0xFFFFFFFF), "which is not memory"),
        (struct.pack("<3I", 0x1BADB002, 8, -(0x1BADB002 + 8) & 0xFFFFFFFF), "not known here: 0x8"),
        (struct.pack("<3I", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF), "neither ELF nor says"),
        (bytes(17 * MIB), "which is not memory"),
        (bytes(MIB), "which the firmware occupies"),
    ],
)  # fmt: skip
def test_a_bad_image_is_refused(memory: Memory, image: bytes, sentence: str) -> None:
    with pytest.raises(BadImage, match=sentence):
        load(memory, image, "", None)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [(0, "over the interrupt vectors"), (0x100000, "cannot reach"), (-1, "over the interrupt")],
)
def test_a_flat_image_must_lie_where_real_mode_can_run_it(
    memory: Memory, address: int, sentence: str
) -> None:
    with pytest.raises(BadImage, match=sentence):
        load(memory, END, "", address)


def test_a_header_with_a_wrong_checksum_is_no_header(memory: Memory) -> None:
    assert load(memory, changed(MULTIBOOT, 8, "<I", 0), "", None).entry == 0x7C00


def test_a_header_past_8_kib_is_not_found(memory: Memory) -> None:
    assert load(memory, bytes(8192) + MULTIBOOT, "", None).entry == 0x7C00


@pytest.mark.parametrize("size", [0, 4096, MIB + 1, 1 << 62])
def test_absurd_memory_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="memory"):
        Memory(size)


def test_every_prefix_of_an_image_is_started_or_refused() -> None:
    """Nothing but BadImage comes out of a loader."""
    memory = Memory(16 * MIB)
    for image in (ELF, MULTIBOOT):
        for size in range(len(image)):
            try:
                load(memory, image[:size], "", None)
            except BadImage as error:
                assert str(error)
