"""The signal calls, and those that change the mask for as long as they wait."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from trapline.process.signal_entry import SIGNALS
from trapline.process.signal_state import (
    ACTION,
    SIGKILL,
    SIGSTOP,
    SS_AUTODISARM,
    SS_DISABLE,
    SS_ONSTACK,
    UNBLOCKABLE,
    Action,
    AlternateStack,
    host_mask,
)
from trapline.process.syscalls.dispatch import arguments, as_file, as_pointer, handles
from trapline.process.syscalls.table import NUMBERS

if TYPE_CHECKING:
    from trapline.process.thread import Thread

_SET_SIZE = 8
_BLOCK, _UNBLOCK, _SETMASK = range(3)
_STACK = struct.Struct("<QI4xQ")
_LEAST_STACK = 2048
# The flags the kernel knows; what else a program sets is cleared, so that it can find out.
_KNOWN_FLAGS = 0xDC000807


@handles("rt_sigaction")
def rt_sigaction(thread: Thread) -> int:
    signal, new, old, size, *_ = arguments(thread)
    signal &= 0xFFFFFFFF
    if size != _SET_SIZE or not 1 <= signal <= SIGNALS or (new and signal in (SIGKILL, SIGSTOP)):
        return -errno.EINVAL
    memory, signals = thread.process.memory, thread.process.signals
    before = signals.get_action(signal)
    if new:
        handler, flags, restorer, mask = ACTION.unpack(memory.read(new, ACTION.size))
        signals.set_action(thread, signal, Action(handler, flags & _KNOWN_FLAGS, restorer, mask))
    if old:
        memory.write(old, before.pack())
    return 0


@handles("rt_sigprocmask")
def rt_sigprocmask(thread: Thread) -> int:
    how, new, old, size, *_ = arguments(thread)
    if size != _SET_SIZE:
        return -errno.EINVAL
    memory, before = thread.process.memory, thread.signals.mask
    if new:
        given = memory.read_word(new)
        how &= 0xFFFFFFFF
        if how > _SETMASK:
            return -errno.EINVAL
        mask = (before | given, before & ~given, given)[how]
        result = thread.process.signals.set_mask(thread, mask)
        if result < 0:
            return result
    if old:
        memory.write_word(old, before)
    return 0


@handles("rt_sigpending")
def rt_sigpending(thread: Thread) -> int:
    place, size, *_ = arguments(thread)
    return thread.calls(NUMBERS["rt_sigpending"], as_pointer(thread, place), size)


@handles("rt_sigtimedwait")
def rt_sigtimedwait(thread: Thread) -> int:
    wanted, siginfo, timeout, size, *_ = arguments(thread)
    if size != _SET_SIZE:
        return -errno.EINVAL
    # The interrupt signal is never blocked on the host, so it cannot be waited for.
    buffer = ctypes.c_uint64(host_mask(thread.process.memory.read_word(wanted)))
    return thread.calls(
        NUMBERS["rt_sigtimedwait"], ctypes.addressof(buffer), as_pointer(thread, siginfo),
        as_pointer(thread, timeout), size,
    )  # fmt: skip


@handles("rt_sigsuspend")
def rt_sigsuspend(thread: Thread) -> int:
    place, size, *_ = arguments(thread)
    if size != _SET_SIZE:
        return -errno.EINVAL
    return _with_mask(
        thread, place, lambda mask: thread.calls(NUMBERS["rt_sigsuspend"], mask, size)
    )


def _with_mask(thread: Thread, place: int, call: Callable[[int], int]) -> int:
    """A call that waits under another mask, at `place`.  A signal's handler still runs under that
    one; the program's own comes back with the handler's end."""
    wanted = thread.process.memory.read_word(place) & ~UNBLOCKABLE
    buffer = ctypes.c_uint64(host_mask(wanted))
    result = call(ctypes.addressof(buffer))
    if result == -errno.EINTR and thread.signal_block.signal:
        thread.signals.restored_mask, thread.signals.mask = thread.signals.mask, wanted
    return result


@handles("ppoll")
def ppoll(thread: Thread) -> int:
    files, count, timeout, place, size, _ = arguments(thread)
    first = (as_pointer(thread, files), count, as_pointer(thread, timeout))
    return _waiting(thread, "ppoll", first, place, size)


@handles("epoll_pwait")
def epoll_pwait(thread: Thread) -> int:
    fd, events, count, timeout, place, size = arguments(thread)
    first = (as_file(thread, fd), as_pointer(thread, events), count, timeout)
    return _waiting(thread, "epoll_pwait", first, place, size)


@handles("epoll_pwait2")
def epoll_pwait2(thread: Thread) -> int:
    fd, events, count, timeout, place, size = arguments(thread)
    first = (as_file(thread, fd), as_pointer(thread, events), count, as_pointer(thread, timeout))
    return _waiting(thread, "epoll_pwait2", first, place, size)


def _waiting(thread: Thread, name: str, first: tuple[int, ...], place: int, size: int) -> int:
    number = NUMBERS[name]
    if not place:
        return thread.calls(number, *[*first, 0, size])
    if size != _SET_SIZE:
        return -errno.EINVAL
    return _with_mask(thread, place, lambda mask: thread.calls(number, *[*first, mask, size]))


@handles("pselect6")
def pselect6(thread: Thread) -> int:
    count, readable, writable, exceptional, timeout, sixth = arguments(thread)
    sets = [as_pointer(thread, place) for place in (readable, writable, exceptional, timeout)]
    number, place = NUMBERS["pselect6"], 0
    if sixth:
        place, size = struct.unpack("<2Q", thread.process.memory.read(sixth, 16))
        if place and size != _SET_SIZE:
            return -errno.EINVAL
    if not place:
        return thread.calls(number, *[count, *sets, 0])
    pair = (ctypes.c_uint64 * 2)(0, _SET_SIZE)

    def call(mask: int) -> int:
        pair[0] = mask
        return thread.calls(number, *[count, *sets, ctypes.addressof(pair)])

    return _with_mask(thread, place, call)


@handles("kill")
def kill(thread: Thread) -> int:
    pid, signal, *_ = arguments(thread)
    own = {0, -1, thread.process.pid, -os.getpgrp()}
    if signal & 0xFFFFFFFF == SIGKILL and _signed(pid) in own:
        _last_words(thread)
    return thread.calls(NUMBERS["kill"], pid, signal)


@handles("tkill", "tgkill")
def tkill(thread: Thread) -> int:
    first, second, third, *_ = arguments(thread)
    signal = second if thread.call_number == NUMBERS["tkill"] else third
    if signal & 0xFFFFFFFF == SIGKILL:
        _last_words(thread)
    return thread.calls(thread.call_number, first, second, third)


def _signed(number: int) -> int:
    return (number & 0xFFFFFFFF ^ 0x80000000) - 0x80000000


def _last_words(thread: Thread) -> None:
    """The VMM is about to be killed with its program: what it has seen so far must be kept."""
    thread.vcpu.report_counts()
    thread.process.observer.may_be_killed(thread.process.pid)


@handles("sigaltstack")
def sigaltstack(thread: Thread) -> int:
    new, old, *_ = arguments(thread)
    memory, before = thread.process.memory, thread.signals.stack
    rsp = thread.get_registers().rsp
    wanted = memory.read(new, _STACK.size) if new else b""
    if new:
        start, flags, size = _STACK.unpack(wanted)
        mode = flags & ~SS_AUTODISARM
        if before.holds(rsp):
            return -errno.EPERM
        if mode not in (0, SS_ONSTACK, SS_DISABLE):
            return -errno.EINVAL
        if mode == SS_DISABLE:
            start = size = 0
        elif size < _LEAST_STACK:
            return -errno.ENOMEM
        thread.signals.stack = AlternateStack(start, flags, size)
    if old:
        memory.write(old, _STACK.pack(before.start, _shown_flags(before, rsp), before.size))
    return 0


def _shown_flags(stack: AlternateStack, rsp: int) -> int:
    mode = 0 if stack.size else SS_DISABLE
    if stack.size and stack.holds(rsp):
        mode = SS_ONSTACK
    return mode | stack.flags & SS_AUTODISARM


@handles("rt_sigreturn")
def rt_sigreturn(thread: Thread) -> int | None:
    return thread.process.signals.sigreturn(thread)


@handles("restart_syscall")
def restart_syscall(thread: Thread) -> int:
    return -errno.EINTR  # the host's kernel restarts its calls itself


@handles("signalfd", "signalfd4")
def signalfd(thread: Thread) -> int:
    fd, mask, size, flags, *_ = arguments(thread)
    return thread.calls(
        thread.call_number, as_file(thread, fd), as_pointer(thread, mask), size, flags
    )


@handles("timer_create")
def timer_create(thread: Thread) -> int:
    clock, event, place, *_ = arguments(thread)
    result = thread.calls(
        NUMBERS["timer_create"], clock, as_pointer(thread, event), as_pointer(thread, place)
    )
    if not result:
        number = int.from_bytes(thread.process.memory.read(place, 4), "little")
        thread.process.signals.timers.add(number)
    return result


@handles("timer_delete")
def timer_delete(thread: Thread) -> int:
    number = thread.vcpu.regs.rdi & 0xFFFFFFFF
    result = thread.calls(NUMBERS["timer_delete"], number)
    if not result:
        thread.process.signals.timers.discard(number)
    return result
