"""ELF headers: real ones understood, broken ones refused with a sentence."""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trapline.process.elf import ElfHeaders, ExecError, read_headers

EXIT_0 = b"\xb8\x3c\0\0\0\x31\xff\x0f\x05"  # mov eax, 60; xor edi, edi; syscall


def small_elf(code: bytes = EXIT_0, **changes: int) -> bytes:
    """A 64-bit ELF with one executable segment that holds all of it."""
    fields = {"class": 2, "order": 1, "type": 2, "machine": 62, "entry": 0x400078, "count": 1}
    fields |= changes
    code = code.ljust(16, b"\x90")
    size = 64 + 56 + len(code)
    ident = bytes([0x7F, *b"ELF", fields["class"], fields["order"], 1]) + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, fields["type"], fields["machine"], 1, fields["entry"],
        64, 0, 0, 64, fields.get("header_size", 56), fields["count"], 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack(
        "<IIQQQQQQ", 1, 5, 0, fields.get("linear", 0x400000), 0,
        fields.get("file_size", size), fields.get("memory_size", size), 4096,
    )  # fmt: skip
    return header + segment + code


def headers_of(data: bytes, tmp_path: Path) -> ElfHeaders:
    path = tmp_path / "program"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_headers(fd, "program")
    finally:
        os.close(fd)


def test_a_small_program(tmp_path: Path) -> None:
    headers = headers_of(small_elf(), tmp_path)
    assert headers.entry == 0x400078
    assert headers.span == (0x400000, 0x401000)
    assert headers.headers_linear == 0x400040
    assert not headers.is_relocatable
    assert headers.interpreter is None
    assert headers.segments[0].prot == 5


def test_a_real_program() -> None:
    fd = os.open(sys.executable, os.O_RDONLY)
    headers = read_headers(fd, sys.executable)
    os.close(fd)
    assert headers.interpreter is not None
    assert headers.interpreter.startswith(b"/lib")
    assert any(segment.prot == 5 for segment in headers.segments)
    assert any(segment.prot == 3 for segment in headers.segments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class": 1}, "32-bit"),
        ({"machine": 183}, "64-bit ARM"),
        ({"machine": 243}, "RISC-V"),
        ({"machine": 9999}, "another machine"),
        ({"type": 1}, "not a program"),
        ({"count": 0}, "damaged"),
        ({"count": 2}, "cut short"),
        ({"count": 200}, "cut short"),
        ({"header_size": 40}, "damaged"),
        ({"file_size": 100000, "memory_size": 100000}, "cut short"),
        ({"memory_size": 8}, "damaged"),
        ({"linear": 0x400800}, "damaged"),
        ({"linear": 0xFFFF_8000_0000_0000}, "damaged"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(ExecError) as caught:
        headers_of(small_elf(**changes), tmp_path)
    assert words in caught.value.sentence
    assert caught.value.hint
    assert (caught.value.errno, caught.value.shell_status) == (errno.ENOEXEC, 126)


@pytest.mark.parametrize("size", [4, 20, 63, 64, 100, 119, 130])
def test_a_program_cut_short(size: int, tmp_path: Path) -> None:
    with pytest.raises(ExecError, match="cut short"):
        headers_of(small_elf()[:size], tmp_path)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 135), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_damage_gets_past_the_checks(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    """Any bytes give headers that make sense, or an ExecError."""
    data = bytearray(small_elf())
    for place, byte in damage:
        data[place] = byte
    try:
        headers = headers_of(bytes(data), tmp_path_factory.getbasetemp())
    except ExecError as error:
        assert error.sentence
        return
    start, end = headers.span
    assert 0 <= start < end
    for segment in headers.segments:
        assert segment.offset + segment.file_size <= len(data)
        assert segment.file_size <= segment.memory_size
