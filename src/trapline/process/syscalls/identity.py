"""Calls about the process itself: thread data, names, limits, how it is seen, how it ends."""

from __future__ import annotations

import ctypes
import errno
import resource
import struct
from typing import TYPE_CHECKING

from trapline.process import layout
from trapline.process.events import Outcome
from trapline.process.syscalls.dispatch import arguments, as_pointer, handles
from trapline.process.syscalls.memory import name_area
from trapline.process.syscalls.table import NUMBERS

if TYPE_CHECKING:
    from trapline.process.thread import Thread

_ARCH_SET_GS, _ARCH_SET_FS, _ARCH_GET_FS, _ARCH_GET_GS = 0x1001, 0x1002, 0x1003, 0x1004
_PR_SET_NAME = 15
_PR_SET_SECCOMP, _PR_SET_MM, _PR_SET_VMA = 22, 35, 0x53564D41
_PR_SET_TSC = 26
# prctl options of which these arguments (0 = the second) are pointers.
_PRCTL_POINTERS = {2: (0,), 9: (0,), 15: (0,), 16: (0,), 19: (0,), 25: (0,), 37: (0,), 40: (0,)}
_KEPT_LIMITS = frozenset({1, 2, 7, 9})  # RLIMIT_FSIZE, _DATA, _NOFILE, _AS
_MOST_FILES = 0x7FFFFFFF  # what a descriptor's number can be
_RLIMIT = struct.Struct("<2Q")
_INFINITY = (1 << 64) - 1


@handles("arch_prctl")
def arch_prctl(thread: Thread) -> int:
    code, address, *_ = arguments(thread)
    vcpu = thread.vcpu
    if code in (_ARCH_SET_FS, _ARCH_SET_GS):
        if address >= layout.USER_END:
            return -errno.EPERM
        if code == _ARCH_SET_FS:
            vcpu.fs_base = address
        else:
            vcpu.gs_base = address
        return 0
    if code in (_ARCH_GET_FS, _ARCH_GET_GS):
        base = vcpu.fs_base if code == _ARCH_GET_FS else vcpu.gs_base
        thread.process.memory.write_word(address, base)
        return 0
    return -errno.EINVAL


@handles("set_tid_address")
def set_tid_address(thread: Thread) -> int:
    thread.clear_child_tid = thread.vcpu.regs.rdi
    return thread.tid


@handles("set_robust_list")
def set_robust_list(thread: Thread) -> int:
    head, size, *_ = arguments(thread)
    if size != 24:
        return -errno.EINVAL
    thread.robust_list, thread.robust_list_size = head, size
    return 0


@handles("get_robust_list")
def get_robust_list(thread: Thread) -> int:
    tid, head, size, *_ = arguments(thread)
    for other in thread.process.threads:
        if tid in (0, other.tid):
            chosen = other if tid else thread
            thread.process.memory.write_word(head, chosen.robust_list)
            thread.process.memory.write_word(size, 24)
            return 0
    return -errno.ESRCH


@handles("prctl")
def prctl(thread: Thread) -> int:
    option, a, b, c, d, _ = arguments(thread)
    option &= 0xFFFFFFFF
    memory = thread.process.memory
    if option in (_PR_SET_SECCOMP, _PR_SET_TSC):
        return -errno.EINVAL  # a filter would judge the VMM's own calls
    if option == _PR_SET_MM:
        return -errno.EPERM
    if option == _PR_SET_VMA:
        name = memory.read_string(d).decode("utf-8", "replace") if d else ""
        name_area(thread, b, c, name)
        return 0
    if option == _PR_SET_NAME:
        thread.name = memory.read_string(a)[:15].decode("utf-8", "replace")
    values = [a, b, c, d]
    for index in _PRCTL_POINTERS.get(option, ()):
        values[index] = as_pointer(thread, values[index])
    return thread.calls(NUMBERS["prctl"], option, *values)


@handles("seccomp")
def seccomp(thread: Thread) -> int:
    return -errno.EINVAL  # as a kernel without filters; one would judge the VMM's own calls


@handles("personality")
def personality(thread: Thread) -> int:
    """READ_IMPLIES_EXEC and its like would change the VMM; they are only remembered."""
    wanted = thread.vcpu.regs.rdi & 0xFFFFFFFF
    before = thread.process.personality
    if wanted != 0xFFFFFFFF:
        thread.process.personality = wanted
    return before


@handles("getrlimit")
def getrlimit(thread: Thread) -> int:
    which, place, *_ = arguments(thread)
    return _limits(thread, 0, which & 0xFFFFFFFF, 0, place)


@handles("setrlimit")
def setrlimit(thread: Thread) -> int:
    which, place, *_ = arguments(thread)
    return _limits(thread, 0, which & 0xFFFFFFFF, place, 0)


@handles("prlimit64")
def prlimit64(thread: Thread) -> int:
    pid, which, new, old, *_ = arguments(thread)
    return _limits(thread, pid & 0xFFFFFFFF, which & 0xFFFFFFFF, new, old)


def _limits(thread: Thread, pid: int, which: int, new: int, old: int) -> int:
    """Limits that would hit the VMM are kept for the program to read; the rest are the host's."""
    process = thread.process
    if pid not in (0, process.pid) or which not in _KEPT_LIMITS:
        return thread.calls(
            NUMBERS["prlimit64"], pid, which, as_pointer(thread, new), as_pointer(thread, old)
        )
    soft, hard = process.limits.get(which) or resource.getrlimit(which)
    wanted = None
    if new:
        wanted = _RLIMIT.unpack(process.memory.read(new, _RLIMIT.size))
        if wanted[0] > wanted[1]:
            return -errno.EINVAL
        if wanted[1] > hard & _INFINITY:
            return -errno.EPERM
    if old:
        process.memory.write(old, _RLIMIT.pack(soft & _INFINITY, hard & _INFINITY))
    if wanted:
        process.limits[which] = wanted
        if which == resource.RLIMIT_NOFILE:
            process.own_files.allow(min(wanted[0], _MOST_FILES))
    return 0


@handles("exit_group")
def exit_group(thread: Thread) -> int:
    status = thread.vcpu.regs.rdi & 0xFF
    return thread.process.end(Outcome(status))


@handles("exit")
def exit_(thread: Thread) -> int:
    return thread.process.end_thread(thread, thread.vcpu.regs.rdi & 0xFF)


_FUTEX_COMMAND = 0x7F
_WAITER = struct.Struct("<3Q")  # struct futex_waitv: the value, the address, flags
_MOST_FUTEXES = 128
_FUTEX_TAKES_NUMBER = frozenset({3, 4, 5, 12})  # REQUEUE, CMP_REQUEUE, WAKE_OP, CMP_REQUEUE_PI


@handles("futex")
def futex(thread: Thread) -> int:
    place, operation, word, timeout, other, third = arguments(thread)
    if operation & _FUTEX_COMMAND not in _FUTEX_TAKES_NUMBER:
        timeout = as_pointer(thread, timeout)
    return thread.calls(
        NUMBERS["futex"], as_pointer(thread, place), operation, word, timeout,
        as_pointer(thread, other), third,
    )  # fmt: skip


@handles("futex_waitv")
def futex_waitv(thread: Thread) -> int:
    """Its array holds pointers: the host gets a copy."""
    place, count, flags, timeout, clock, _ = arguments(thread)
    if not 0 < count & 0xFFFFFFFF <= _MOST_FUTEXES:
        return -errno.EINVAL
    data = bytearray(thread.process.memory.read(place, (count & 0xFFFFFFFF) * _WAITER.size))
    for at in range(0, len(data), _WAITER.size):
        word, linear, rest = _WAITER.unpack_from(data, at)
        _WAITER.pack_into(data, at, word, as_pointer(thread, linear), rest)
    buffer = ctypes.create_string_buffer(bytes(data), len(data))
    return thread.calls(
        NUMBERS["futex_waitv"], ctypes.addressof(buffer), count, flags,
        as_pointer(thread, timeout), clock,
    )  # fmt: skip


@handles("io_uring_setup")
def io_uring_setup(thread: Thread) -> int:
    """Its requests hold pointers, in memory that the kernel reads when it likes: not for programs
    that have memory which is elsewhere on the host."""
    count, parameters, *_ = arguments(thread)
    if thread.process.memory.areas.between(0, layout.LOW_SIZE):
        return -errno.ENOSYS
    return thread.calls(NUMBERS["io_uring_setup"], count, as_pointer(thread, parameters))


@handles("io_setup", "io_destroy", "io_getevents", "io_submit", "io_cancel")
def no_aio(thread: Thread) -> int:
    return -errno.ENOSYS  # the ring is memory that the host's kernel maps by itself


_SEMCTL_POINTERS = frozenset({1, 2, 3, 13, 17, 18, 19, 20})


@handles("semctl")
def semctl(thread: Thread) -> int:
    identifier, number, command, argument, *_ = arguments(thread)
    if command & 0xFF in _SEMCTL_POINTERS:
        argument = as_pointer(thread, argument)
    return thread.calls(NUMBERS["semctl"], identifier, number, command, argument)
