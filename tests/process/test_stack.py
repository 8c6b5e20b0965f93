"""The stack a program starts with, read back as its start code reads it (System V ABI, 3.4)."""

from __future__ import annotations

import os
import struct

import pytest

from trapline.process import stack
from trapline.process.stack import Entry, InitialStack, build_stack

TOP = 0x7FFF_FFFF_F000
ENTRY = Entry(0x400040, 56, 9, 0x7F00_0000_0000, 0x401000, 0x0F8BFBFF, 2048, b"./prog")


def word(made: InitialStack, linear: int) -> int:
    return int(struct.unpack_from("<Q", made.data, linear - made.rsp)[0])


def text(made: InitialStack, linear: int) -> bytes:
    start = linear - made.rsp
    return made.data[start : made.data.index(0, start)]


def read_back(made: InitialStack) -> tuple[list[bytes], list[bytes], dict[int, int]]:
    place, lists = made.rsp + 8, []
    for _ in range(2):
        strings = []
        while word(made, place):
            strings.append(text(made, word(made, place)))
            place += 8
        place += 8
        lists.append(strings)
    auxiliary = {}
    while word(made, place):
        auxiliary[word(made, place)] = word(made, place + 8)
        place += 16
    return lists[0], lists[1], auxiliary


@pytest.mark.parametrize("count", range(1, 7))
@pytest.mark.parametrize("variables", range(4))
def test_everything_is_found_and_aligned(count: int, variables: int) -> None:
    arguments = [b"a" * (3 * index) for index in range(count)]
    environment = [b"V%d=%s" % (index, b"x" * index) for index in range(variables)]
    made = build_stack(TOP, arguments, environment, ENTRY)
    assert made.rsp % 16 == 0
    assert made.rsp + len(made.data) == TOP
    assert word(made, made.rsp) == count
    found_arguments, found_environment, auxiliary = read_back(made)
    assert (found_arguments, found_environment) == (arguments, environment)
    assert auxiliary[stack.AT_PHDR] == 0x400040
    assert auxiliary[stack.AT_PHNUM] == 9
    assert auxiliary[stack.AT_ENTRY] == 0x401000
    assert auxiliary[stack.AT_BASE] == 0x7F00_0000_0000
    assert auxiliary[stack.AT_HWCAP] == 0x0F8BFBFF
    assert auxiliary[stack.AT_PAGESZ] == 4096
    assert auxiliary[stack.AT_UID] == os.getuid()
    assert text(made, auxiliary[stack.AT_EXECFN]) == b"./prog"
    assert text(made, auxiliary[stack.AT_PLATFORM]) == b"x86_64"
    assert 33 not in auxiliary  # AT_SYSINFO_EHDR: there is no vDSO
    random = auxiliary[stack.AT_RANDOM] - made.rsp
    assert len(made.data[random : random + 16]) == 16


def test_what_the_kernel_shows_as_cmdline_and_environ() -> None:
    made = build_stack(TOP, [b"prog", b"one"], [b"A=1", b"B=2"], ENTRY)

    def between(span: tuple[int, int]) -> bytes:
        return made.data[span[0] - made.rsp : span[1] - made.rsp]

    assert between(made.arguments) == b"prog\0one\0"
    assert between(made.environment) == b"A=1\0B=2\0"
    assert between(made.auxiliary)[-16:] == bytes(16)


def test_two_stacks_have_different_random_bytes() -> None:
    first, second = (build_stack(TOP, [b"p"], [], ENTRY) for _ in range(2))
    assert first.data != second.data
