"""What the thread loop asks of signals, and the little that is true without handlers."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trapline.process.events import Outcome

if TYPE_CHECKING:
    from trapline.process.process import Process
    from trapline.process.thread import Thread

SI_KERNEL = 0x80


@dataclass(frozen=True, slots=True)
class Trouble:
    """A signal that an instruction of the program caused, with what its handler may ask for."""

    signal: int
    code: int
    linear: int = 0  # si_addr
    vector: int = 0
    error: int = 0
    cr2: int = 0


class Delivery(Protocol):
    """Signals as the loop sees them."""

    def force(self, thread: Thread, trouble: Trouble) -> None:
        """Deliver at once: a handler's frame is set up, or the process ends."""

    def attend(self, thread: Thread) -> None:
        """The thread's pending word is set: deliver what may be delivered."""

    def after_call(self, thread: Thread, result: int) -> int | None:
        """A call came back with EINTR or a restart number; None if registers are already set."""

    def leave_to_host(self, thread: Thread) -> None:
        """The program goes on natively after an execve: give the host its mask and dispositions."""


class FatalOnly:
    """Every signal that the program causes ends it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def force(self, thread: Thread, trouble: Trouble) -> None:
        self._process.end(Outcome(0, trouble.signal))

    def attend(self, thread: Thread) -> None:
        thread.calls.words[0] = 0

    def after_call(self, thread: Thread, result: int) -> int | None:
        return result

    def leave_to_host(self, thread: Thread) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(number, signal.SIG_DFL)
