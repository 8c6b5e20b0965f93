"""Signals as Linux numbers them, what a process does about each, and what each thread remembers."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from trapline.process.signal_entry import INTERRUPT_SIGNAL, KICK_SIGNAL, SIGNALS

SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL = range(1, 10)
SIGSEGV, SIGPIPE, SIGCHLD, SIGCONT, SIGSTOP = 11, 13, 17, 18, 19
SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGXFSZ, SIGWINCH = 20, 21, 22, 23, 25, 28

SIG_DFL, SIG_IGN = 0, 1
SA_NOCLDSTOP, SA_NOCLDWAIT, SA_SIGINFO = 1, 2, 4
SA_RESTORER, SA_ONSTACK, SA_RESTART = 0x04000000, 0x08000000, 0x10000000
SA_NODEFER, SA_RESETHAND = 0x40000000, 0x80000000
SS_ONSTACK, SS_DISABLE, SS_AUTODISARM = 1, 2, 1 << 31

IGNORED_BY_DEFAULT = frozenset({SIGCHLD, SIGCONT, SIGURG, SIGWINCH})
STOPPING_BY_DEFAULT = frozenset({SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU})
UNBLOCKABLE = 1 << (SIGKILL - 1) | 1 << (SIGSTOP - 1)

ACTION = struct.Struct("<4Q")  # struct sigaction as the system call has it


def bit(signal: int) -> int:
    """Where a signal stands in a mask."""
    return 1 << (signal - 1)


def host_mask(mask: int) -> int:
    """What the host is to block where the program blocks `mask`."""
    return mask & ~bit(INTERRUPT_SIGNAL) | bit(KICK_SIGNAL)


@dataclass(frozen=True, slots=True)
class Action:
    """struct sigaction."""

    handler: int = SIG_DFL
    flags: int = 0
    restorer: int = 0
    mask: int = 0

    def pack(self) -> bytes:
        return ACTION.pack(self.handler, self.flags, self.restorer, self.mask)

    @property
    def is_handled(self) -> bool:
        return self.handler not in (SIG_DFL, SIG_IGN)


DEFAULT = Action()


def default_actions() -> list[Action]:
    """One for each signal number; the first is nobody's."""
    return [DEFAULT] * (SIGNALS + 1)


@dataclass(frozen=True, slots=True)
class AlternateStack:
    """What sigaltstack set."""

    start: int = 0
    flags: int = SS_DISABLE
    size: int = 0

    def holds(self, rsp: int) -> bool:
        """Whether a stack pointer is on it (the kernel's on_sig_stack)."""
        if self.flags & SS_AUTODISARM:
            return False
        return self.start < rsp <= self.start + self.size


NO_STACK = AlternateStack()


@dataclass(slots=True)
class ThreadSignals:
    """One thread's part of signal handling; `mask` is the program's, not the host's."""

    mask: int = 0
    restored_mask: int | None = None  # `mask` is for one call only; this one comes after it
    stack: AlternateStack = NO_STACK
    restart: int = 0  # the call just left may be made again: ERESTARTSYS or ERESTARTNOINTR
    error: int = 0  # of the last exception, as sigcontext shows them
    trap: int = 0
    cr2: int = 0

    def for_new_thread(self) -> ThreadSignals:
        """What a thread made by this one starts with."""
        return ThreadSignals(self.mask)

    def for_child(self) -> ThreadSignals:
        """What a forked process's thread starts with."""
        return ThreadSignals(self.mask, stack=self.stack)
