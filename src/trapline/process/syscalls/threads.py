"""clone and its relatives: new threads and new processes."""

from __future__ import annotations

import errno
import signal
import struct
from typing import TYPE_CHECKING

from trapline.process.fork import fork
from trapline.process.syscalls.dispatch import arguments, handles
from trapline.process.threads import (
    CLONE_CLEAR_SIGHAND,
    CLONE_FILES,
    CLONE_INTO_CGROUP,
    CLONE_PARENT_SETTID,
    CLONE_PIDFD,
    CLONE_SIGHAND,
    CLONE_THREAD,
    CLONE_VFORK,
    CLONE_VM,
    CloneRequest,
    start_thread,
)

if TYPE_CHECKING:
    from trapline.process.thread import Thread

_EXIT_SIGNAL = 0xFF
# struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
# set_tid, set_tid_size, cgroup
_CLONE_ARGS = struct.Struct("<11Q")
_LEAST_ARGS, _MOST_ARGS = 64, 4096


@handles("clone")
def clone(thread: Thread) -> int | None:
    flags, stack, parent_tid, child_tid, tls, _ = arguments(thread)
    flags &= 0xFFFFFFFF
    if flags & CLONE_PIDFD and flags & CLONE_PARENT_SETTID:
        return -errno.EINVAL  # they share an argument
    request = CloneRequest(
        flags & ~_EXIT_SIGNAL, flags & _EXIT_SIGNAL, stack, parent_tid, child_tid, tls, parent_tid
    )
    return _clone(thread, request)


@handles("clone3")
def clone3(thread: Thread) -> int | None:
    place, size, *_ = arguments(thread)
    if not _LEAST_ARGS <= size <= _MOST_ARGS:
        return -errno.E2BIG if size > _MOST_ARGS else -errno.EINVAL
    data = thread.process.memory.read(place, size)
    if any(data[_CLONE_ARGS.size :]):
        return -errno.E2BIG
    flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, _, tids, _ = (
        _CLONE_ARGS.unpack(data[: _CLONE_ARGS.size].ljust(_CLONE_ARGS.size, b"\0"))
    )
    if flags & _EXIT_SIGNAL or exit_signal & ~_EXIT_SIGNAL or bool(stack) != bool(stack_size):
        return -errno.EINVAL
    if tids or flags & CLONE_INTO_CGROUP:
        return -errno.EPERM
    request = CloneRequest(
        flags, exit_signal, stack + stack_size, parent_tid, child_tid, tls, pidfd
    )
    return _clone(thread, request)


@handles("fork")
def fork_(thread: Thread) -> int | None:
    return fork(thread, CloneRequest(0, signal.SIGCHLD))


@handles("vfork")
def vfork(thread: Thread) -> int | None:
    return fork(thread, CloneRequest(CLONE_VM | CLONE_VFORK, signal.SIGCHLD))


def _clone(thread: Thread, request: CloneRequest) -> int | None:
    flags = request.flags
    if flags & CLONE_SIGHAND and (not flags & CLONE_VM or flags & CLONE_CLEAR_SIGHAND):
        return -errno.EINVAL
    if flags & CLONE_THREAD:
        if not flags & CLONE_SIGHAND or flags & CLONE_PIDFD:
            return -errno.EINVAL
        return start_thread(thread, request)
    if flags & CLONE_VM and not flags & CLONE_VFORK:
        return -errno.EINVAL  # two processes that go on in one memory: the VMM is one process
    if flags & CLONE_FILES:
        return -errno.EINVAL  # nor can two VMMs share their descriptors
    return fork(thread, request)
