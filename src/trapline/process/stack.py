"""The stack a program finds when it starts: strings, auxiliary vector, environment, arguments.

The layout is the System V ABI's; the order of the strings is Linux's, which tools rely on.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from trapline.process.layout import PAGE

(
    AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_BASE, AT_FLAGS, AT_ENTRY,
) = range(3, 10)  # fmt: skip
AT_UID, AT_EUID, AT_GID, AT_EGID, AT_PLATFORM, AT_HWCAP, AT_CLKTCK = range(11, 18)
AT_SECURE, AT_RANDOM, AT_HWCAP2, AT_EXECFN, AT_MINSIGSTKSZ = 23, 25, 26, 31, 51


@dataclass(frozen=True, slots=True)
class Entry:
    """What the auxiliary vector says about the images."""

    headers: int
    header_size: int
    header_count: int
    interpreter_base: int
    entry: int
    capabilities: int
    signal_stack: int
    program: bytes  # as execve was given it


@dataclass(frozen=True, slots=True)
class InitialStack:
    """The bytes to put at `rsp` and where in them the pieces are that the kernel knows of."""

    rsp: int
    data: bytes
    arguments: tuple[int, int]
    environment: tuple[int, int]
    auxiliary: tuple[int, int]


def build_stack(
    top: int, arguments: Sequence[bytes], environment: Sequence[bytes], entry: Entry
) -> InitialStack:
    """The stack that ends at `top`."""
    strings = bytearray()
    argument_places = _append(strings, arguments)
    environment_places = _append(strings, environment)
    end_of_arguments = environment_places[0] if environment else len(strings)
    program = _append(strings, [entry.program])[0]
    strings_start = top - 8 - len(strings)
    fixed = b"x86_64\0"
    fixed_start = (strings_start - len(fixed) - 16 - 16) & -16
    random_place, platform_place = fixed_start, fixed_start + 16
    auxiliary = _auxiliary(entry, random_place, platform_place, strings_start + program)
    words = [
        len(arguments),
        *(strings_start + place for place in argument_places), 0,
        *(strings_start + place for place in environment_places), 0,
    ]  # fmt: skip
    head = struct.pack(f"<{len(words)}Q", *words)
    rsp = (fixed_start - len(head) - len(auxiliary)) & -16
    data = head + auxiliary
    data = data.ljust(fixed_start - rsp, b"\0") + os.urandom(16) + fixed
    data = data.ljust(strings_start - rsp, b"\0") + bytes(strings) + bytes(8)
    return InitialStack(
        rsp,
        data,
        (strings_start, strings_start + end_of_arguments),
        (strings_start + end_of_arguments, strings_start + program),
        (rsp + len(head), rsp + len(head) + len(auxiliary)),
    )


def _append(strings: bytearray, texts: Sequence[bytes]) -> list[int]:
    places = []
    for text in texts:
        places.append(len(strings))
        strings += text + b"\0"
    return places


def _auxiliary(entry: Entry, random: int, platform: int, program: int) -> bytes:
    # No AT_SYSINFO_EHDR: without a vDSO clock_gettime and its like are system calls, which the
    # host answers; a vDSO would read the host kernel's own pages.
    pairs = (
        (AT_HWCAP, entry.capabilities), (AT_PAGESZ, PAGE), (AT_CLKTCK, os.sysconf("SC_CLK_TCK")),
        (AT_PHDR, entry.headers), (AT_PHENT, entry.header_size), (AT_PHNUM, entry.header_count),
        (AT_BASE, entry.interpreter_base), (AT_FLAGS, 0), (AT_ENTRY, entry.entry),
        (AT_UID, os.getuid()), (AT_EUID, os.geteuid()), (AT_GID, os.getgid()),
        (AT_EGID, os.getegid()), (AT_SECURE, 0), (AT_RANDOM, random), (AT_HWCAP2, 0),
        (AT_EXECFN, program), (AT_PLATFORM, platform), (AT_MINSIGSTKSZ, entry.signal_stack), (0, 0),
    )  # fmt: skip
    return b"".join(struct.pack("<2Q", *pair) for pair in pairs)
