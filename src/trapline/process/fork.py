"""Children: fork, vfork and clone without CLONE_THREAD are a host fork of the whole VMM.

In the child only the thread that forked goes on.  What a vfork shares is `vfork`'s business.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
import warnings
from typing import TYPE_CHECKING

from trapline.process.signal_entry import ALL, set_host_mask
from trapline.process.syscalls.table import NUMBERS
from trapline.process.threads import (
    CLONE_CHILD_SETTID,
    CLONE_CLEAR_SIGHAND,
    CLONE_FS,
    CLONE_PARENT,
    CLONE_PARENT_SETTID,
    CLONE_PIDFD,
    CLONE_SYSVSEM,
    CLONE_VFORK,
    CLONE_VM,
    CloneRequest,
    store_ids,
)
from trapline.process.vfork import ChildLink, ParentLink, open_link

if TYPE_CHECKING:
    from trapline.process.thread import Thread

# Flags that a host fork cannot take: they need clone itself.
_NAMESPACES = 0x7E020000  # CLONE_NEW*
_CLONE_IO = 0x80000000
_FOR_HOST = _NAMESPACES | _CLONE_IO | CLONE_FS | CLONE_SYSVSEM | CLONE_PARENT
_PTHREAD_HEAD = 0x400

# A VMM with threads may fork: `Process.become_child` and the rooms below see to their locks.
warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", module=__name__)


def fork(thread: Thread, request: CloneRequest) -> int | None:
    """The child's pid, or -errno; None in the child, whose registers are set."""
    process = thread.process
    result = set_host_mask(thread.calls, ALL)  # a signal that has come is the parent's alone
    if result < 0:
        return result
    thread.vcpu.report_counts()
    beginning = request.beginning(thread.snapshot())
    link = open_link(process.own_files) if request.flags & CLONE_VFORK else None
    # Nobody may be in the middle of changing what the child gets a copy of.
    with process.lock, process.memory.lock:
        child = _fork_host(thread, request)
        if not child:
            process.become_child(thread, beginning)
    if not child:
        _begin_child(thread, request, link)
        return None
    if child > 0:
        _tell_parent(thread, request, child)
    if link is not None:
        link[1].close()
        if child > 0:
            link[0].wait(thread)
        link[0].close()
    process.signals.unblock(thread)
    return child


def _fork_host(thread: Thread, request: CloneRequest) -> int:
    """As fork answers, with -errno for an error."""
    if request.exit_signal == signal.SIGCHLD and not request.flags & _FOR_HOST:
        try:
            return os.fork()
        except OSError as error:
            return -(error.errno or errno.EAGAIN)
    return _clone_host(thread, request)


def _clone_host(thread: Thread, request: CloneRequest) -> int:
    """What os.fork does, with flags and an exit signal that it has not."""
    python = ctypes.pythonapi
    flags = request.flags & _FOR_HOST | request.exit_signal & 0xFF | CLONE_CHILD_SETTID
    python.PyOS_BeforeFork()
    # The C library keeps the thread's id where raise() and its mutexes look for it.
    result = thread.quiet.with_lock(NUMBERS["clone"], flags, 0, 0, _place_of_tid())
    if result:
        python.PyOS_AfterFork_Parent()
    else:
        python.PyOS_AfterFork_Child()
    return result


def _place_of_tid() -> int:
    """Where the C library remembers the id of the calling thread: in its struct pthread."""
    library = ctypes.CDLL(None)
    library.pthread_self.restype = ctypes.c_uint64
    start: int = library.pthread_self()
    words = (ctypes.c_uint32 * _PTHREAD_HEAD).from_address(start)
    for index, word in enumerate(words):
        if word == threading.get_native_id():
            return start + 4 * index
    raise OSError(errno.ENOSYS, "this C library keeps thread ids elsewhere")


def _begin_child(
    thread: Thread, request: CloneRequest, link: tuple[ParentLink, ChildLink] | None
) -> None:
    process = thread.process
    process.signals.after_fork(thread, clear=bool(request.flags & CLONE_CLEAR_SIGHAND))
    if process.vfork_link is not None:  # that of the parent, a vfork's child itself
        process.vfork_link.close()
        process.vfork_link = None
    process.memory.end_journal()
    if link is not None:
        link[0].close()
        process.vfork_link = link[1]
        if request.flags & CLONE_VM:
            process.memory.begin_journal()
    store_ids(thread, request, is_parent=False)
    process.signals.unblock(thread)


def _tell_parent(thread: Thread, request: CloneRequest, child: int) -> None:
    process = thread.process
    process.observer.forked(process.pid, child)
    number = child.to_bytes(4, "little")
    if request.flags & CLONE_PARENT_SETTID:
        process.memory.write(request.parent_tid, number)
    if request.flags & CLONE_PIDFD:
        fd = thread.quiet(NUMBERS["pidfd_open"], child)
        process.memory.write(request.pidfd, (fd & 0xFFFFFFFF).to_bytes(4, "little"))
