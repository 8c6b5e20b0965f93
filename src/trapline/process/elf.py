"""ELF headers of programs, as far as running them needs: where segments go, where it starts.

Reads bytes and judges them; nothing is mapped here.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

from trapline.process.areas import PAGE, PROT_EXEC, PROT_READ, PROT_WRITE

ET_EXEC, ET_DYN = 2, 3
PT_LOAD, PT_INTERP, PT_PHDR, PT_GNU_STACK = 1, 3, 6, 0x6474E551
EM_386, EM_X86_64 = 3, 62
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_MACHINES = {
    2: "SPARC", 3: "32-bit x86", 8: "MIPS", 20: "PowerPC", 21: "64-bit PowerPC", 22: "s390",
    40: "32-bit ARM", 43: "64-bit SPARC", 183: "64-bit ARM", 243: "RISC-V", 258: "LoongArch",
}  # fmt: skip


class ExecError(OSError):
    """Why a program cannot be started: an errno, one sentence, and what to do about it."""

    def __init__(self, number: int, sentence: str, hint: str = "") -> None:
        super().__init__(number, sentence)
        self.sentence = sentence
        self.hint = hint

    @property
    def shell_status(self) -> int:
        """127 where there is no such program, 126 where it cannot be run."""
        return 127 if self.errno in (errno.ENOENT, errno.ENOTDIR) else 126


@dataclass(frozen=True, slots=True)
class LoadSegment:
    """One PT_LOAD."""

    linear: int
    offset: int
    file_size: int
    memory_size: int
    prot: int


@dataclass(frozen=True, slots=True)
class ElfHeaders:
    """What the headers of one file say."""

    is_relocatable: bool
    entry: int
    segments: tuple[LoadSegment, ...]
    interpreter: bytes | None
    headers_linear: int
    header_size: int
    header_count: int
    executable_stack: bool

    @property
    def span(self) -> tuple[int, int]:
        """First and last linear address, in whole pages."""
        start = min(segment.linear for segment in self.segments) & -PAGE
        end = max(segment.linear + segment.memory_size for segment in self.segments)
        return start, end + PAGE - 1 & -PAGE


class _File:
    """Reads pieces of a file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size

    def at(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset) if offset < self.size else b""


def read_headers(fd: int, name: str) -> ElfHeaders:
    """Headers of the ELF file behind a descriptor; ExecError says what is wrong with it."""
    reader = _File(fd)
    data = reader.at(0, _HEADER.size)
    if len(data) < _HEADER.size:
        raise _truncated(name)
    ident, kind, machine, _, entry, headers, _, _, _, size, count, _, _, _ = _HEADER.unpack(data)
    if ident[4] == 1:
        raise ExecError(
            errno.ENOEXEC,
            f"{name} is a 32-bit program",
            "Trapline runs 64-bit x86 programs; a 64-bit build of it would run.",
        )
    if machine != EM_X86_64 or ident[5] != 1:
        what = _MACHINES.get(machine, f"another machine (ELF machine {machine})")
        raise ExecError(
            errno.ENOEXEC,
            f"{name} is a program for {what}",
            "Trapline runs programs for 64-bit x86.",
        )
    if kind not in (ET_EXEC, ET_DYN):
        raise ExecError(
            errno.ENOEXEC,
            f"{name} is an ELF file, but not a program",
            "Object files have to be linked first.",
        )
    if size != _SEGMENT.size or not 0 < count <= 512:
        raise _damaged(name)
    table = reader.at(headers, size * count)
    if len(table) < size * count:
        raise _truncated(name)
    rows = [_SEGMENT.unpack_from(table, size * index) for index in range(count)]
    return _interpret(reader, name, kind, entry, headers, rows)


def _interpret(
    reader: _File, name: str, kind: int, entry: int, headers: int, rows: list[tuple[int, ...]]
) -> ElfHeaders:
    segments: list[LoadSegment] = []
    interpreter = None
    executable_stack = False
    headers_linear = 0
    for row_kind, flags, offset, linear, _, file_size, memory_size, _ in rows:
        if row_kind == PT_LOAD and memory_size:
            if offset + file_size > reader.size:
                raise _truncated(name)
            if (linear - offset) % PAGE or file_size > memory_size or linear >> 47:
                raise _damaged(name)
            prot = flags >> 2 & PROT_READ | flags & PROT_WRITE | flags << 2 & PROT_EXEC
            segments.append(LoadSegment(linear, offset, file_size, memory_size, prot))
            if offset <= headers < offset + file_size:
                headers_linear = linear + headers - offset
        elif row_kind == PT_INTERP:
            if not 2 <= file_size <= 4096:
                raise _damaged(name)
            interpreter = reader.at(offset, file_size)
            if len(interpreter) < file_size:
                raise _truncated(name)
            interpreter = interpreter.rstrip(b"\0")
        elif row_kind == PT_GNU_STACK:
            executable_stack = bool(flags & 1)
    if not segments or any(
        after.linear < before.linear + before.memory_size
        for before, after in zip(segments, segments[1:], strict=False)
    ):
        raise _damaged(name)
    return ElfHeaders(
        kind == ET_DYN, entry, tuple(segments), interpreter, headers_linear,
        _SEGMENT.size, len(rows), executable_stack,
    )  # fmt: skip


def _truncated(name: str) -> ExecError:
    return ExecError(
        errno.ENOEXEC,
        f"{name} is cut short: its headers speak of bytes that are not in the file",
        "Copy or build it again.",
    )


def _damaged(name: str) -> ExecError:
    return ExecError(errno.ENOEXEC, f"{name} has damaged ELF headers", "Copy or build it again.")
