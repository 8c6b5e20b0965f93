"""execve: another program in the same process."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from trapline.process.lifecycle import execute
from trapline.process.load import plan
from trapline.process.memory import GuestMemory
from trapline.process.syscalls.dispatch import arguments, handles

if TYPE_CHECKING:
    from trapline.process.thread import Thread

_AT_EMPTY_PATH, _AT_SYMLINK_NOFOLLOW = 0x1000, 0x100
_AT_FDCWD = 0xFFFFFF9C
_MOST_STRINGS = 1 << 18


@handles("execve")
def execve(thread: Thread) -> None:
    path, arguments_place, environment_place, *_ = arguments(thread)
    memory = thread.process.memory
    program = thread.process.paths.followed(memory.read_string(path, 4096))
    _execute(thread, program, arguments_place, environment_place)


@handles("execveat")
def execveat(thread: Thread) -> int | None:
    folder, path, arguments_place, environment_place, flags, _ = arguments(thread)
    program = thread.process.memory.read_string(path, 4096)
    if not program and not flags & _AT_EMPTY_PATH:
        return -errno.ENOENT
    if not program.startswith(b"/") and folder & 0xFFFFFFFF != _AT_FDCWD:
        base = os.fsencode(os.readlink(f"/proc/self/fd/{folder & 0xFFFFFFFF}"))
        program = base + b"/" + program if program else base
    if flags & _AT_SYMLINK_NOFOLLOW and os.path.islink(program):
        return -errno.ELOOP
    _execute(thread, program, arguments_place, environment_place)
    return None


def _execute(thread: Thread, program: bytes, arguments_at: int, environment_at: int) -> None:
    memory = thread.process.memory
    strings = read_strings(memory, arguments_at) or [b""], read_strings(memory, environment_at)
    with thread.process.own_files.room():
        planned = plan(program, *strings)
    execute(thread.process, thread, planned)


def read_strings(memory: GuestMemory, linear: int) -> list[bytes]:
    """A zero-terminated array of strings, as argv; NULL is an empty one, as on Linux."""
    strings: list[bytes] = []
    while linear:
        if len(strings) == _MOST_STRINGS:
            raise OSError(errno.E2BIG, "too many strings")
        place = memory.read_word(linear)
        if not place:
            break
        strings.append(memory.read_string(place))
        linear += 8
    return strings
