"""Calls on descriptors and paths that need more than their arguments translated."""

from __future__ import annotations

import errno
from collections.abc import Container
from typing import TYPE_CHECKING

from trapline.process.syscalls.dispatch import arguments, as_file, as_path, as_pointer, handles
from trapline.process.syscalls.table import NUMBERS

if TYPE_CHECKING:
    from trapline.process.thread import Thread

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_O_CLOEXEC = 0o2000000
_CLOSE_RANGE_MOST = 0xFFFFFFFF


@handles("open")
def open_(thread: Thread) -> int:
    path, flags, mode, *_ = arguments(thread)
    return _open(thread, _AT_FDCWD & 0xFFFFFFFF, path, flags, mode)


@handles("openat")
def openat(thread: Thread) -> int:
    folder, path, flags, mode, *_ = arguments(thread)
    return _open(thread, folder, path, flags, mode)


def _open(thread: Thread, folder: int, path: int, flags: int, mode: int) -> int:
    made = thread.process.paths.open_made_up(thread, path, bool(flags & _O_CLOEXEC))
    if made is not None:
        return made
    host_path = as_path(thread, path)
    return thread.calls(NUMBERS["openat"], as_file(thread, folder), host_path, flags, mode)


@handles("openat2")
def openat2(thread: Thread) -> int:
    folder, path, how, size, *_ = arguments(thread)
    flags = thread.process.memory.read_word(how)
    made = thread.process.paths.open_made_up(thread, path, bool(flags & _O_CLOEXEC))
    if made is not None:
        return made
    return thread.calls(
        NUMBERS["openat2"], as_file(thread, folder), as_path(thread, path),
        as_pointer(thread, how), size,
    )  # fmt: skip


@handles("newfstatat")
def newfstatat(thread: Thread) -> int:
    folder, path, status, flags, *_ = arguments(thread)
    return thread.calls(
        NUMBERS["newfstatat"], as_file(thread, folder),
        _path_unless_link(thread, path, flags), as_pointer(thread, status), flags,
    )  # fmt: skip


@handles("statx")
def statx(thread: Thread) -> int:
    folder, path, flags, mask, status, _ = arguments(thread)
    return thread.calls(
        NUMBERS["statx"], as_file(thread, folder), _path_unless_link(thread, path, flags),
        flags, mask, as_pointer(thread, status),
    )  # fmt: skip


@handles("faccessat2", "fchmodat2")
def faccessat2(thread: Thread) -> int:
    folder, path, mode, flags, *_ = arguments(thread)
    return thread.calls(
        thread.call_number, as_file(thread, folder), _path_unless_link(thread, path, flags),
        mode, flags,
    )  # fmt: skip


def _path_unless_link(thread: Thread, path: int, flags: int) -> int:
    if flags & _AT_SYMLINK_NOFOLLOW or not path:
        return as_pointer(thread, path)
    return as_path(thread, path)


@handles("readlink")
def readlink(thread: Thread) -> int:
    path, buffer, size, *_ = arguments(thread)
    return _readlink(thread, _AT_FDCWD & 0xFFFFFFFF, path, buffer, size)


@handles("readlinkat")
def readlinkat(thread: Thread) -> int:
    folder, path, buffer, size, *_ = arguments(thread)
    return _readlink(thread, folder, path, buffer, size)


def _readlink(thread: Thread, folder: int, path: int, buffer: int, size: int) -> int:
    text = thread.process.paths.link_text(thread, path)
    if text is None:
        return thread.calls(
            NUMBERS["readlinkat"], as_file(thread, folder), as_pointer(thread, path),
            as_pointer(thread, buffer), size,
        )  # fmt: skip
    if size & 0x80000000 or not size:
        return -errno.EINVAL
    thread.process.memory.write(buffer, text[:size])
    return min(len(text), size)


@handles("getdents64")
def getdents64(thread: Thread) -> int:
    """A folder's entries; /proc/self/fd without the VMM's own descriptors."""
    fd, buffer, size, *_ = arguments(thread)
    while True:
        result = thread.calls(
            NUMBERS["getdents64"], as_file(thread, fd), as_pointer(thread, buffer), size
        )
        if result <= 0 or not thread.process.paths.lists_descriptors(fd & 0xFFFFFFFF):
            return result
        memory = thread.process.memory
        kept = _without(memory.read(buffer, result), thread.process.own_files)
        if kept:
            memory.write(buffer, kept)
            return len(kept)


def _without(entries: bytes, own: Container[int]) -> bytes:
    """Entries (struct linux_dirent64) but for those whose names are the VMM's descriptors."""
    kept, place = [], 0
    while place < len(entries):
        size = int.from_bytes(entries[place + 16 : place + 18], "little")
        entry = entries[place : place + size]
        name = entry[19 : entry.index(0, 19)]
        if not (name.isdigit() and int(name) in own):
            kept.append(entry)
        place += size
    return b"".join(kept)


@handles("close")
def close(thread: Thread) -> int:
    fd = thread.vcpu.regs.rdi & 0xFFFFFFFF
    if fd in thread.process.own_files:
        return -errno.EBADF
    return thread.calls(NUMBERS["close"], fd)


@handles("close_range")
def close_range(thread: Thread) -> int:
    """close_range around the VMM's own descriptors."""
    first, last, flags, *_ = arguments(thread)
    first, last = first & _CLOSE_RANGE_MOST, last & _CLOSE_RANGE_MOST
    if first > last:
        return -errno.EINVAL
    for own in thread.process.own_files:
        if first <= own <= last:
            if first < own:
                result = thread.calls(NUMBERS["close_range"], first, own - 1, flags)
                if result < 0:
                    return result
            first = own + 1
    return thread.calls(NUMBERS["close_range"], first, last, flags) if first <= last else 0


@handles("dup2", "dup3")
def dup2(thread: Thread) -> int:
    old, new, flags, *_ = arguments(thread)
    own = thread.process.own_files
    if old & 0xFFFFFFFF in own or new & 0xFFFFFFFF in own:
        return -errno.EBADF
    return thread.calls(thread.call_number, old, new, flags)


_F_DUPFD, _F_DUPFD_CLOEXEC = 0, 1030
# Commands whose third argument is a pointer: locks, owners, read/write hints.
_FCNTL_POINTERS = frozenset({5, 6, 7, 15, 16, 36, 37, 38, *range(1035, 1041)})


@handles("fcntl")
def fcntl(thread: Thread) -> int:
    fd, command, argument, *_ = arguments(thread)
    if command & 0xFFFFFFFF in _FCNTL_POINTERS:
        argument = as_pointer(thread, argument)
    return thread.calls(NUMBERS["fcntl"], as_file(thread, fd), command, argument)


@handles("ioctl")
def ioctl(thread: Thread) -> int:
    """The argument is a number or a pointer, as each driver likes.

    Above 4 GiB both go through as they are; below, it is taken for a pointer if something of the
    program's is mapped there, which small numbers are not.
    """
    fd, command, argument, *_ = arguments(thread)
    memory = thread.process.memory
    if memory.areas.find(argument) is not None:
        argument = memory.host(argument)
    return thread.calls(NUMBERS["ioctl"], as_file(thread, fd), command, argument)
