"""Stops the other processors of a process, so that what they remember can be changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapline.process.thread import Thread


class World:
    """The threads of one process, as far as they may be in the guest.

    A thread in the guest has `in_guest` set before it looks at `stopping`; who stops sets
    `stopping` before looking at `in_guest`.  So one of the two sees the other.
    """

    def __init__(self) -> None:
        self.threads: list[Thread] = []
        self.stopping = False
        self._turn = threading.RLock()
        self._left = threading.Condition()

    def enter(self, thread: Thread) -> None:
        """Called before a thread runs its vCPU: waits while the world is stopped."""
        thread.in_guest = True
        while self.stopping:
            thread.in_guest = False
            with self._left:
                self._left.notify_all()
                while self.stopping:
                    self._left.wait(1)
            thread.in_guest = True

    def leave(self, thread: Thread) -> None:
        """Called when the vCPU has come back."""
        thread.in_guest = False
        if self.stopping:
            with self._left:
                self._left.notify_all()

    def flush(self) -> None:
        """Have every thread drop its remembered translations before it runs on."""
        current = threading.get_ident()
        with self._turn:
            for thread in self.threads:
                thread.needs_flush = True
            if any(thread.in_guest for thread in self.threads if thread.host_thread != current):
                with self.stopped():
                    pass

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """No other thread is in the guest until the block ends, and each flushes afterwards."""
        current = threading.get_ident()
        with self._turn:
            was_stopping, self.stopping = self.stopping, True
            try:
                for thread in self.threads:
                    thread.needs_flush = True
                self._wait_for([t for t in self.threads if t.host_thread != current])
                yield
            finally:
                if not was_stopping:
                    self._go()

    def _wait_for(self, others: list[Thread]) -> None:
        with self._left:
            for thread in others:
                if thread.in_guest:
                    thread.vcpu.kick()
            while any(thread.in_guest for thread in others):
                if not self._left.wait(1):
                    for thread in others:
                        if thread.in_guest:
                            thread.vcpu.kick()

    def _go(self) -> None:
        with self._left:
            self.stopping = False
            self._left.notify_all()

    def after_fork(self, survivor: Thread) -> None:
        """In a child only the forking thread is left, and every lock is new."""
        self.threads = [survivor]
        self.stopping = False
        self._turn = threading.RLock()
        self._left = threading.Condition()
