"""Signals of the program: what is done about each, when, and how the host's own reach it.

A signal stays with the host's kernel until a thread of the program can take it; from then on it
waits in that thread's block (`signal_entry`) until the thread comes by.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from typing import TYPE_CHECKING

from trapline.arch.exception import PF_PRESENT
from trapline.process import layout
from trapline.process.events import Outcome
from trapline.process.memory import GuestFault
from trapline.process.native import ERESTARTSYS, HostCalls
from trapline.process.signal_entry import (
    ALL,
    HANDLER,
    INTERRUPT_CODE,
    INTERRUPT_SIGNAL,
    KICK_SIGNAL,
    RESTORER,
    SIGINFO_SIZE,
    SIGNALS,
    get_host_action,
    get_host_mask,
    set_host_action,
    set_host_mask,
)
from trapline.process.signal_frame import put_frame, take_frame
from trapline.process.signal_state import (
    IGNORED_BY_DEFAULT,
    NO_STACK,
    SA_NOCLDSTOP,
    SA_NOCLDWAIT,
    SA_NODEFER,
    SA_ONSTACK,
    SA_RESETHAND,
    SA_RESTART,
    SA_RESTORER,
    SA_SIGINFO,
    SIG_DFL,
    SIG_IGN,
    SIGBUS,
    SIGKILL,
    SIGPIPE,
    SIGSEGV,
    SIGSTOP,
    SIGXFSZ,
    SS_AUTODISARM,
    STOPPING_BY_DEFAULT,
    UNBLOCKABLE,
    Action,
    ThreadSignals,
    bit,
    default_actions,
    host_mask,
)
from trapline.process.syscalls.table import NUMBERS
from trapline.process.trouble import SI_KERNEL, Trouble

if TYPE_CHECKING:
    from trapline.process.process import Process
    from trapline.process.thread import Thread

EINTR = 4
_SYSCALL_SIZE = 2
_PR_SET_DUMPABLE = 4
_CHANGEABLE = [
    signal for signal in range(1, SIGNALS + 1) if signal not in (SIGKILL, SIGSTOP, KICK_SIGNAL)
]
_PYTHONS = (SIGPIPE, SIGXFSZ)  # which Python ignores, whatever its parent did
_INTERVAL_TIMERS = range(3)  # ITIMER_REAL, which is alarm's too, _VIRTUAL, _PROF
_HOST_FLAGS = SA_SIGINFO | SA_ONSTACK | SA_RESTART | SA_RESTORER
_CHILD_FLAGS = SA_NOCLDSTOP | SA_NOCLDWAIT
_FAULT = struct.Struct("<3i4xQ")  # signo, errno, code, addr

# Calls that the kernel restarts under SA_RESTART.  All others either never wait, so that being
# turned back means that they have not been made, or end with EINTR whatever the flag says.
_RESTARTABLE_NAMES = (
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 open openat openat2 "
    "creat ioctl fcntl flock wait4 waitid accept accept4 connect sendto sendmsg sendmmsg recvfrom "
    "recvmsg recvmmsg sendfile splice tee vmsplice copy_file_range futex getrandom mq_timedsend "
    "mq_timedreceive fsync fdatasync msync fallocate"
)
_RESTARTABLE = frozenset(NUMBERS[name] for name in _RESTARTABLE_NAMES.split())


class Signals:
    """One process's signals, for the loops of its threads."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.actions = default_actions()
        self._lock = threading.Lock()
        self._host_actions: dict[int, bytes] = {}
        self._host_mask = 0
        self.timers: set[int] = set()  # of timer_create, which an execve deletes

    # -- the host ---------------------------------------------------------------------------------

    def take_over(self, thread: Thread) -> None:
        """The program is about to start on this host thread: from now on signals are its own."""
        calls = thread.quiet
        self._host_mask = get_host_mask(calls)
        thread.signals.mask = self._host_mask & ~bit(INTERRUPT_SIGNAL) & ~bit(KICK_SIGNAL)
        set_host_mask(calls, ALL)
        thread.signal_block.adopt(calls)
        for signal in _CHANGEABLE:
            before = get_host_action(calls, signal)
            self._host_actions[signal] = before
            ignored = int.from_bytes(before[:8], "little") == SIG_IGN
            if ignored and signal not in _PYTHONS:
                self.actions[signal] = Action(SIG_IGN)
            self._tell_host(calls, signal)
        self.unblock(thread)

    def give_back(self, thread: Thread) -> None:
        """The program has ended: signals are the VMM's again."""
        calls = thread.quiet
        set_host_mask(calls, ALL)
        self._stop_timers(calls)
        for signal, before in self._host_actions.items():
            # Ignored for a moment: what still waits for the program is nobody else's.
            set_host_action(calls, signal, Action(SIG_IGN).pack())
            set_host_action(calls, signal, before)
        thread.signal_block.leave(calls)
        set_host_mask(calls, self._host_mask)

    def _tell_host(self, calls: HostCalls, signal: int) -> None:
        """Have the host do at once what needs no program, and hand us all else."""
        action = self.actions[signal]
        flags = _HOST_FLAGS | action.flags & _CHILD_FLAGS
        entry = Action(HANDLER, flags, RESTORER, ALL)
        if not action.is_handled and signal not in _ALWAYS_OURS:
            is_idle = signal in IGNORED_BY_DEFAULT or signal in STOPPING_BY_DEFAULT
            if action.handler == SIG_IGN or is_idle:
                entry = Action(action.handler, action.flags & _CHILD_FLAGS)
        set_host_action(calls, signal, entry.pack())

    def unblock(self, thread: Thread) -> bool:
        """Have the host block what the program blocks; False if a signal has come before."""
        mask = host_mask(thread.signals.mask)
        if set_host_mask(thread.calls, mask) < 0:
            return False
        thread.vcpu.set_signal_mask(mask)
        return True

    def leave_to_host(self, thread: Thread) -> None:
        """The program goes on natively after an execve, which itself takes the handlers away."""
        set_host_mask(thread.quiet, thread.signals.mask)

    def die_of(self, signal: int) -> None:
        """End the host's process as the program's would have ended, without a dump of the VMM."""
        calls = HostCalls()
        calls(NUMBERS["prctl"], _PR_SET_DUMPABLE, 0)
        set_host_action(calls, signal, Action().pack())
        set_host_mask(calls, ALL & ~bit(signal))
        calls(NUMBERS["kill"], self._process.pid, signal)

    def interrupt(self, thread: Thread) -> None:
        """End the host call that the thread may be in."""
        if thread.tid:
            siginfo = bytearray(SIGINFO_SIZE)
            struct.pack_into("<3i", siginfo, 0, INTERRUPT_SIGNAL, 0, INTERRUPT_CODE)
            send(HostCalls(), self._process.pid, thread.tid, INTERRUPT_SIGNAL, bytes(siginfo))

    # -- what the program asks for ----------------------------------------------------------------

    def get_action(self, signal: int) -> Action:
        return self.actions[signal]

    def set_action(self, thread: Thread, signal: int, action: Action) -> None:
        """rt_sigaction."""
        with self._lock:
            self.actions[signal] = Action(
                action.handler, action.flags, action.restorer, action.mask & ~UNBLOCKABLE
            )
            if signal != KICK_SIGNAL:
                self._tell_host(thread.quiet, signal)

    def set_mask(self, thread: Thread, mask: int) -> int:
        """rt_sigprocmask: 0, or that a signal comes first."""
        mask &= ~UNBLOCKABLE
        if mask != thread.signals.mask:
            result = set_host_mask(thread.calls, host_mask(mask))
            if result < 0:
                return result
            thread.signals.mask = mask
            thread.vcpu.set_signal_mask(host_mask(mask))
        return 0

    def after_exec(self, thread: Thread) -> None:
        """Another program: handlers are gone, what was ignored stays so."""
        with self._lock:
            for signal in _CHANGEABLE:
                action = self.actions[signal]
                if action.handler != SIG_IGN and action != Action():
                    self.actions[signal] = Action()
                    self._tell_host(thread.quiet, signal)
        thread.signals = ThreadSignals(thread.signals.mask)
        self._delete_timers(thread.quiet)

    def _delete_timers(self, calls: HostCalls) -> None:
        while self.timers:
            calls(NUMBERS["timer_delete"], self.timers.pop())

    def _stop_timers(self, calls: HostCalls) -> None:
        """The program's, which natively end with it."""
        self._delete_timers(calls)
        never = (ctypes.c_uint64 * 4)()
        for which in _INTERVAL_TIMERS:
            calls(NUMBERS["setitimer"], which, ctypes.addressof(never), 0)

    def after_fork(self, thread: Thread, *, clear: bool = False) -> None:
        """In a child: timers stay the parent's, and the lock may have been another thread's.

        `clear`: handlers are gone too (CLONE_CLEAR_SIGHAND).
        """
        self._lock = threading.Lock()
        self.timers.clear()
        thread.signals = thread.signals.for_child()
        if clear:
            for signal in _CHANGEABLE:
                if self.actions[signal].is_handled:
                    self.actions[signal] = Action()
                    self._tell_host(thread.quiet, signal)

    def ended(self, thread: Thread) -> None:
        """The thread takes no more signals; one it has taken already is for another one."""
        set_host_mask(thread.quiet, ALL)
        if thread.signal_block.signal:
            signal, _ = thread.signal_block.take()
            thread.quiet(NUMBERS["kill"], self._process.pid, signal)

    # -- delivery ---------------------------------------------------------------------------------

    def force(self, thread: Thread, trouble: Trouble) -> None:
        """An instruction of the program caused a signal, which cannot be put off."""
        signal, state = trouble.signal, thread.signals
        state.error, state.trap = trouble.error, trouble.vector
        if trouble.cr2 >= layout.USER_END:
            state.error |= PF_PRESENT  # nothing is said about what the kernel has mapped
        if trouble.cr2:
            state.cr2 = trouble.cr2
        action = self.actions[signal]
        if not action.is_handled or state.mask & bit(signal):
            self._process.end(Outcome(0, signal))
        siginfo = _FAULT.pack(signal, 0, trouble.code, trouble.linear)
        self._handle(thread, signal, siginfo.ljust(SIGINFO_SIZE, b"\0"), action)
        self.unblock(thread)

    def attend(self, thread: Thread) -> None:
        """Deliver what waits in the thread's block, one after the other as it comes."""
        block, state = thread.signal_block, thread.signals
        while True:
            if block.signal:
                self._deliver(thread, *block.take())
            if state.restored_mask is not None:
                state.mask, state.restored_mask = state.restored_mask, None
            # In this order: what comes from now on sets the word again, or has to wait.
            thread.calls.words[0] = 0
            if not block.signal and self.unblock(thread):
                break
        state.restart = 0

    def _deliver(self, thread: Thread, signal: int, siginfo: bytes) -> None:
        action, state = self.actions[signal], thread.signals
        if action.handler == SIG_IGN or (action.handler == SIG_DFL and signal in _HARMLESS):
            return
        if action.handler == SIG_DFL:
            self._process.end(Outcome(0, signal))
        if state.mask & bit(signal):
            # Blocked by a handler since it came.  The host must not block the interrupt signal.
            if signal != INTERRUPT_SIGNAL:
                send(thread.quiet, self._process.pid, thread.tid, signal, siginfo)
            return
        if state.restart:
            if state.restart == ERESTARTSYS and not action.flags & SA_RESTART:
                regs = thread.get_registers()
                regs.rip, regs.rax = regs.rip + _SYSCALL_SIZE, -EINTR & ALL
                thread.set_registers(regs)
            state.restart = 0
        self._handle(thread, signal, siginfo, action)

    def _handle(self, thread: Thread, signal: int, siginfo: bytes, action: Action) -> None:
        """Have the thread go on in its handler."""
        state = thread.signals
        if action.flags & SA_RESETHAND:
            self.set_action(thread, signal, Action())
        saved = state.mask if state.restored_mask is None else state.restored_mask
        try:
            regs = put_frame(thread, signal, siginfo, action, saved)
        except GuestFault:
            self._no_room(thread, signal)
            return
        state.restored_mask = None
        if state.stack.flags & SS_AUTODISARM:
            state.stack = NO_STACK
        state.mask |= action.mask
        if not action.flags & SA_NODEFER:
            state.mask |= bit(signal)
        if not is_canonical(regs.rip):
            self._process.end(Outcome(0, SIGSEGV))
        thread.set_registers(regs)

    def _no_room(self, thread: Thread, signal: int) -> None:
        """force_sigsegv(): a frame that the stack cannot take."""
        action = self.actions[SIGSEGV]
        if signal == SIGSEGV or not action.is_handled or thread.signals.mask & bit(SIGSEGV):
            self._process.end(Outcome(0, SIGSEGV))
        siginfo = _FAULT.pack(SIGSEGV, 0, SI_KERNEL, 0).ljust(SIGINFO_SIZE, b"\0")
        self._handle(thread, SIGSEGV, siginfo, action)

    def sigreturn(self, thread: Thread) -> int | None:
        """rt_sigreturn: None, the program's registers are set; or a signal comes first."""
        state = thread.signals
        try:
            regs, mask, stack = take_frame(thread)
        except GuestFault:
            self._bad_frame(thread)
            return None
        result = self.set_mask(thread, mask)
        if result < 0:
            return result
        if not state.stack.holds(regs.rsp):
            state.stack = stack
        thread.set_registers(regs)
        if not is_canonical(regs.rip):
            self._bad_frame(thread)  # the kernel's IRET faults
        return None

    def _bad_frame(self, thread: Thread) -> None:
        self.force(thread, Trouble(SIGSEGV, SI_KERNEL))

    # -- calls that a signal ended ----------------------------------------------------------------

    def after_call(self, thread: Thread, result: int) -> int | None:
        """A call gave way to a signal: EINTR, or it is made again after the handler."""
        if result == -EINTR:
            return result
        number = thread.call_number
        regs = thread.get_registers()
        regs.rip, regs.rax = regs.rip - _SYSCALL_SIZE, number
        thread.set_registers(regs)
        may_fail = result == -ERESTARTSYS and number in _RESTARTABLE
        thread.signals.restart = ERESTARTSYS if may_fail else ERESTARTSYS + 1
        return None


# SIGBUS, because the host raises it where a file has been cut short.
_ALWAYS_OURS = (INTERRUPT_SIGNAL, SIGBUS)
_HARMLESS = IGNORED_BY_DEFAULT | STOPPING_BY_DEFAULT


def send(calls: HostCalls, pid: int, tid: int, signal: int, siginfo: bytes) -> int:
    """rt_tgsigqueueinfo."""
    buffer = ctypes.create_string_buffer(siginfo, SIGINFO_SIZE)
    return calls(NUMBERS["rt_tgsigqueueinfo"], pid, tid, signal, ctypes.addressof(buffer))


def is_canonical(rip: int) -> bool:
    """Whether the processor can be sent there at all; what then happens is for it to say."""
    return rip >> 47 in (0, 0x1FFFF)
