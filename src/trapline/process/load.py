"""Finds out what is to be run (`plan`), and puts it into an empty address space (`load`).

Everything that can be refused is refused by `plan`, before anything has changed.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trapline.process import layout, mapping
from trapline.process.areas import PAGE, PROT_EXEC, PROT_READ, PROT_WRITE
from trapline.process.elf import ElfHeaders, ExecError, LoadSegment, read_headers
from trapline.process.mapping import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_NORESERVE,
    MAP_PRIVATE,
)
from trapline.process.memory import GuestMemory
from trapline.process.stack import Entry, InitialStack, build_stack

_ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS
_SCRIPT_DEPTH = 5
_STACK_MOST = 64 << 20
_STACK_USUAL = 8 << 20
_STACK_GUARD = 1 << 20
_ARGUMENTS_MOST = 6 << 20


@dataclass
class Plan:
    """An execve that can go ahead: open files and their headers."""

    path: str  # the ELF file
    named: bytes  # the program as it was named
    arguments: list[bytes]
    environment: list[bytes]
    file: int
    headers: ElfHeaders
    interpreter_file: int = -1
    interpreter_headers: ElfHeaders | None = None

    def close(self) -> None:
        for fd in (self.file, self.interpreter_file):
            if fd >= 0:
                os.close(fd)


@dataclass(frozen=True)
class Image:
    """A program that has been loaded."""

    path: str
    arguments: tuple[bytes, ...]
    environment: tuple[bytes, ...]
    entry: int
    base: int
    code: tuple[int, int]
    data: tuple[int, int]
    stack_top: int
    initial: InitialStack


def find_program(name: str, path: str | None) -> str:
    """The file a shell would run for this name."""
    if "/" in name:
        return name
    found = None
    for folder in (path if path is not None else os.defpath).split(os.pathsep):
        candidate = os.path.join(folder or ".", name)
        if os.path.isfile(candidate):
            if os.access(candidate, os.X_OK):
                return candidate
            found = found or candidate
    if found:
        return found
    raise ExecError(
        errno.ENOENT,
        f"{name}: no such program",
        "It is in none of the folders in PATH; give its path if it is elsewhere.",
    )


def plan(program: bytes, arguments: Sequence[bytes], environment: Sequence[bytes]) -> Plan:
    """What execve of this would run; ExecError if it would fail."""
    size = sum(len(text) + 9 for text in (*arguments, *environment))
    if size > min(_ARGUMENTS_MOST, _stack_size() // 4 * 3):
        raise ExecError(errno.E2BIG, "the arguments and the environment are too long")
    file, arguments = program, list(arguments)
    for _ in range(_SCRIPT_DEPTH):
        name = os.fsdecode(file)
        fd = _open_program(file, name)
        try:
            head = os.pread(fd, 256, 0)
            if head[:2] != b"#!":
                return _plan_elf(fd, name, head, program, arguments, list(environment))
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        interpreter, *option = _interpreter_line(head, name)
        arguments = [interpreter, *option, file, *arguments[1:]]
        file = interpreter
    raise ExecError(errno.ELOOP, f"{os.fsdecode(program)}: too many interpreters one for another")


def _open_program(file: bytes, name: str) -> int:
    try:
        status = os.stat(file)
        if stat.S_ISDIR(status.st_mode):
            raise ExecError(errno.EACCES, f"{name} is a directory", "Name a program in it.")
        if not stat.S_ISREG(status.st_mode):
            raise ExecError(errno.EACCES, f"{name} is not a file", "Name a program.")
        if not os.access(file, os.X_OK, effective_ids=True):
            raise ExecError(
                errno.EACCES,
                f"{name}: no permission to execute it",
                f"If it is a program, `chmod +x {name}` makes it executable.",
            )
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except ExecError:
        raise
    except FileNotFoundError as error:
        raise ExecError(errno.ENOENT, f"{name}: no such file", "Check the path.") from error
    except OSError as error:
        number = error.errno or errno.EACCES
        raise ExecError(number, f"{name}: {os.strerror(number).lower()}") from error
    except ValueError as error:
        raise ExecError(errno.ENOENT, f"{name!r} cannot be a path") from error


def _interpreter_line(head: bytes, name: str) -> list[bytes]:
    """Interpreter and at most one argument, as the kernel cuts a #! line."""
    line = head[2:].split(b"\n")[0].strip(b" \t")
    words = line.split(None, 1)
    if not words:
        raise ExecError(
            errno.ENOEXEC, f"{name} has an empty #! line", "It should name an interpreter."
        )
    return words


def _plan_elf(
    fd: int, name: str, head: bytes, named: bytes, arguments: list[bytes], environment: list[bytes]
) -> Plan:
    if head[:4] != b"\x7fELF":
        if not head:
            raise ExecError(errno.ENOEXEC, f"{name} is empty", "Build or copy it again.")
        raise ExecError(
            errno.ENOEXEC,
            f"{name} is neither an ELF program nor a script with a #! line",
            f"If it is a shell script, run `sh {name}`.",
        )
    headers = read_headers(fd, name)
    result = Plan(os.path.realpath(name), named, arguments, environment, fd, headers)
    if headers.interpreter is not None:
        interpreter = os.fsdecode(headers.interpreter)
        try:
            result.interpreter_file = _open_program(headers.interpreter, interpreter)
            result.interpreter_headers = read_headers(result.interpreter_file, interpreter)
        except ExecError as error:
            if result.interpreter_file >= 0:
                os.close(result.interpreter_file)
            sentence = f"{name} needs the loader {interpreter}, which cannot be used"
            raise ExecError(error.errno or errno.ENOEXEC, sentence, error.sentence) from error
    return result


# -- loading ------------------------------------------------------------------------------------


def load(memory: GuestMemory, planned: Plan, capabilities: int, signal_stack: int) -> Image:
    """Map the program into an empty address space and build its stack."""
    headers = planned.headers
    # A program with an interpreter or at fixed addresses keeps clear of mmap's area; so does a
    # loader run by itself, whose program will want the usual place.
    base = _map_image(memory, planned.file, headers, planned.path, layout.PIE_BASE)
    entry, interpreter_base = base + headers.entry, 0
    interpreter = planned.interpreter_headers
    if interpreter is not None:
        interpreter_base = _map_image(
            memory, planned.interpreter_file, interpreter, planned.path, 0
        )
        entry = interpreter_base + interpreter.entry
    end = base + headers.span[1]
    memory.brk_start = memory.brk_end = end
    top = _map_stack(memory, headers.executable_stack)
    initial = build_stack(
        top,
        planned.arguments,
        planned.environment,
        Entry(
            base + headers.headers_linear, headers.header_size, headers.header_count,
            interpreter_base, base + headers.entry, capabilities, signal_stack,
            planned.named,
        ),
    )  # fmt: skip
    memory.write(initial.rsp, initial.data)
    code = [part for part in headers.segments if part.prot & PROT_EXEC] or headers.segments
    data = [part for part in headers.segments if part.prot & PROT_WRITE] or headers.segments
    return Image(
        planned.path,
        tuple(planned.arguments),
        tuple(planned.environment),
        entry,
        base,
        (base + code[0].linear, base + code[-1].linear + code[-1].file_size),
        (base + data[0].linear, base + data[-1].linear + data[-1].file_size),
        top,
        initial,
    )


def _map_image(memory: GuestMemory, fd: int, headers: ElfHeaders, name: str, hint: int) -> int:
    """Map the segments; the load bias."""
    start, end = headers.span
    flags = _ANONYMOUS | MAP_NORESERVE
    if headers.is_relocatable:
        place = mapping.map_memory(memory, hint + start, end - start, 0, flags, -1, 0)
    else:
        place = mapping.map_memory(
            memory, start, end - start, 0, flags | MAP_FIXED_NOREPLACE, -1, 0
        )
    if place < 0:
        raise ExecError(
            -place, f"{name}: there is no room at {start:#x} for it", "It is linked to addresses "
            "that Trapline itself occupies.",
        )  # fmt: skip
    base = place - start
    used = []
    for segment in headers.segments:
        _map_segment(memory, fd, segment, base, name)
        first = base + segment.linear & -PAGE
        used.append((first, base + segment.linear + segment.memory_size + PAGE - 1 & -PAGE))
    for (_, before), (after, _) in zip(used, used[1:], strict=False):
        if before < after:
            mapping.unmap_memory(memory, before, after - before)
    return base


def _map_segment(memory: GuestMemory, fd: int, segment: LoadSegment, base: int, name: str) -> None:
    first = base + segment.linear & -PAGE
    file_end = base + segment.linear + segment.file_size
    memory_end = base + segment.linear + segment.memory_size + PAGE - 1 & -PAGE
    file_pages_end = file_end + PAGE - 1 & -PAGE
    if segment.file_size:
        offset = segment.offset - (base + segment.linear - first)
        _must(
            mapping.map_memory(
                memory, first, file_pages_end - first, segment.prot, MAP_PRIVATE | MAP_FIXED, fd,
                offset,
            ), name,
        )  # fmt: skip
    else:
        file_pages_end = first
    if memory_end > file_pages_end:
        _must(
            mapping.map_memory(
                memory, file_pages_end, memory_end - file_pages_end, segment.prot,
                _ANONYMOUS | MAP_FIXED, -1, 0,
            ), name,
        )  # fmt: skip
    if segment.file_size and segment.memory_size > segment.file_size and segment.prot & PROT_WRITE:
        # To the end of the page, not only of the segment: the loader's malloc relies on it.
        memory.write(file_end, bytes(file_pages_end - file_end))


def _must(result: int, name: str) -> None:
    if result < 0:
        raise ExecError(-result, f"{name} cannot be mapped: {os.strerror(-result).lower()}")


def _stack_size() -> int:
    limit = resource.getrlimit(resource.RLIMIT_STACK)[0]
    return _STACK_USUAL if limit == resource.RLIM_INFINITY else min(limit, _STACK_MOST) & -PAGE


def _map_stack(memory: GuestMemory, executable: bool) -> int:
    """The whole stack at once, over a guard; its top."""
    size = max(_stack_size(), 64 * PAGE)
    prot = PROT_READ | PROT_WRITE | (PROT_EXEC if executable else 0)
    flags = _ANONYMOUS | MAP_NORESERVE
    guard = mapping.map_memory(memory, 0, size + _STACK_GUARD, 0, flags, -1, 0)
    _must(guard, "the stack")
    start = guard + _STACK_GUARD
    _must(mapping.protect_memory(memory, start, size, prot), "the stack")
    with memory.lock:
        area = memory.areas.find(start)
        assert area is not None
        memory.areas.add(replace(area.part(start, start + size), name="[stack]"))
    return start + size
