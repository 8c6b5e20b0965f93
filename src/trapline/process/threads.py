"""Threads of the program: each is a host thread with a processor of its own.

How one begins (clone) and what it leaves behind; the loop between is `thread`'s.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trapline.process.lifecycle import leave_thread, run_to_end
from trapline.process.signal_entry import ALL, set_host_mask
from trapline.process.thread import EndThread, Snapshot, Thread

if TYPE_CHECKING:
    from trapline.process.process import Process

CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND = 0x100, 0x200, 0x400, 0x800
CLONE_PIDFD, CLONE_VFORK, CLONE_PARENT, CLONE_THREAD = 0x1000, 0x4000, 0x8000, 0x10000
CLONE_SYSVSEM, CLONE_SETTLS, CLONE_PARENT_SETTID = 0x40000, 0x80000, 0x100000
CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID = 0x200000, 0x1000000
CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP = 1 << 32, 1 << 33

_TOOL_ERROR = 2


@dataclass(frozen=True, slots=True)
class CloneRequest:
    """What clone and clone3 ask for; `stack` is the RSP to start with, 0 to keep the parent's."""

    flags: int
    exit_signal: int = 0
    stack: int = 0
    parent_tid: int = 0
    child_tid: int = 0
    tls: int = 0
    pidfd: int = 0

    def beginning(self, parent: Snapshot) -> Snapshot:
        """The registers of who is made, out of those of who makes."""
        regs = parent.regs
        regs.rax = 0
        if self.stack:
            regs.rsp = self.stack
        fs_base = self.tls if self.flags & CLONE_SETTLS else parent.fs_base
        return replace(parent, regs=regs, fs_base=fs_base)


def start_thread(parent: Thread, request: CloneRequest) -> int:
    """clone with CLONE_THREAD: the new thread's id, or -errno."""
    process = parent.process
    result = set_host_mask(parent.calls, ALL)  # which the new host thread starts with
    if result < 0:
        return result
    try:
        thread = process.new_thread()
    except OSError:
        process.signals.unblock(parent)
        return -errno.EAGAIN
    thread.signals = parent.signals.for_new_thread()
    thread.name = parent.name
    beginning, started = request.beginning(parent.snapshot()), threading.Event()
    host_thread = threading.Thread(
        target=_run, args=(thread, beginning, request, started), name=thread.name, daemon=True
    )
    try:
        host_thread.start()
    except RuntimeError:  # the host has no more threads for us
        process.thread_ended(thread)
        process.signals.unblock(parent)
        return -errno.EAGAIN
    started.wait()
    process.signals.unblock(parent)
    return thread.tid or -errno.EAGAIN


def _run(
    thread: Thread, beginning: Snapshot, request: CloneRequest, started: threading.Event
) -> None:
    """A host thread's whole life."""
    process = thread.process
    try:
        thread.signal_block.adopt(thread.quiet)
        # Again: the C library starts every thread with one signal of its own not blocked, which
        # the program may send before this one blocks what the program does.
        set_host_mask(thread.quiet, ALL)
        thread.start(beginning)
        store_ids(thread, request, is_parent=True)
        process.observer.thread_started(process.pid, thread.tid, beginning.regs.rsp)
        started.set()
        process.signals.unblock(thread)
        thread.run()
        if process.leader is thread:  # of a process that this thread forked
            run_to_end(process, thread)
        leave_thread(thread)
    except BaseException as error:
        _fail(process, thread, error)
    finally:
        started.set()


def store_ids(thread: Thread, request: CloneRequest, *, is_parent: bool) -> None:
    """Put the new thread's id where clone was told to, before it can look; `is_parent`: its
    parent's memory is its own."""
    memory, number = thread.process.memory, thread.tid.to_bytes(4, "little")
    for flag, place in (
        (CLONE_PARENT_SETTID if is_parent else 0, request.parent_tid),
        (CLONE_CHILD_SETTID, request.child_tid),
    ):
        if request.flags & flag:
            with contextlib.suppress(OSError):  # the kernel does not mind either
                memory.write(place, number)
    if request.flags & CLONE_CHILD_CLEARTID:
        thread.clear_child_tid = request.child_tid


def _fail(process: Process, thread: Thread, error: BaseException) -> None:
    """A defect of the VMM: the process ends, and its first thread says why."""
    if process.leader is thread:
        process.say(f"trapline: internal error in a child: {error!r}\n")
        os._exit(_TOOL_ERROR)
    process.thread_ended(thread)
    with contextlib.suppress(EndThread):
        process.fail(error)
