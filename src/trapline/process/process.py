"""One guest process: its memory, its threads, its signals, and what the VMM knows about it.

The pieces know their own trade; this is where they are held together.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Callable
from dataclasses import replace

from trapline.arch.msr import IA32_DEBUGCTL
from trapline.kvm import Kvm, exits
from trapline.process.areas import Area
from trapline.process.describe import Description, describe
from trapline.process.events import Outcome, ProgramObserver
from trapline.process.exceptions import handle_exception, handle_lost_page
from trapline.process.load import Image, Plan
from trapline.process.machine import GuestMachine
from trapline.process.memory import GuestMemory
from trapline.process.own_files import OwnFiles
from trapline.process.policy import Policy
from trapline.process.procfs import Paths
from trapline.process.signal_state import SIGKILL
from trapline.process.signals import Signals
from trapline.process.syscalls import system_call
from trapline.process.thread import EndThread, Snapshot, Thread, current_thread
from trapline.process.vfork import ChildLink
from trapline.process.world import World


class _ProcessWorld(World):
    """Passes news of the address space on to the observer."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process

    def mapped(self, area: Area) -> None:
        self._process.observer.mapped(self._process.pid, area)

    def unmapped(self, area: Area) -> None:
        self._process.observer.unmapped(self._process.pid, area)


class Process:
    """A Linux process that runs as the guest of this VMM."""

    def __init__(
        self,
        kvm: Kvm,
        *,
        observer: ProgramObserver | None = None,
        policy: Policy | None = None,
        follow: bool = True,
    ) -> None:
        self.kvm = kvm
        self.observer = observer or ProgramObserver()
        self.policy = policy or Policy()
        self.follow = follow
        self.pid = os.getpid()
        self.parent = 0  # the traced process that forked this one, 0 for the first
        self.own_files = OwnFiles()
        self._stderr: int | None = None
        with contextlib.suppress(OSError):
            self._stderr = self.own_files.keep(os.dup(2))
        kvm.place_files(self.own_files.keep)
        self.world = _ProcessWorld(self)
        self.machine = GuestMachine(kvm)
        self.memory = GuestMemory(self.machine, self.world)
        self.signals = Signals(self)
        self.paths = Paths(self)
        self.limits: dict[int, tuple[int, int]] = {  # rlimits as the program sees and sets them
            resource.RLIMIT_NOFILE: self.own_files.limits
        }
        self.personality = 0
        self.image: Image | None = None
        self.vfork_link: ChildLink | None = None  # to a parent that waits for this process
        self.leader: Thread | None = None  # the thread whose id is the process's
        self.pending_image: Plan | None = None  # execve by a thread that is not the leader
        # Run before the old program goes.
        self.on_execute: list[Callable[[Thread], None]] = [self.signals.after_exec]
        self.ending: Outcome | None = None
        self.failure: BaseException | None = None  # of the VMM itself
        self.lock = threading.RLock()  # threads, ending, pending_image
        self.changed = threading.Condition(self.lock)  # a thread ended, or something is pending
        self.observer.attached(self)

    # -- threads --------------------------------------------------------------------------------

    @property
    def threads(self) -> list[Thread]:
        """The threads that have not ended."""
        return self.world.threads

    def new_thread(self) -> Thread:
        """A thread with a processor of its own; `start` and `run` it on its host thread."""
        with self.lock, self.own_files.room():
            thread = Thread(self, self.machine.take_processor())
            self.world.threads.append(thread)
            return thread

    def thread_ended(self, thread: Thread) -> None:
        """Forget a thread whose loop is over; its processor serves another."""
        with self.changed:
            if thread in self.world.threads:
                thread.vcpu.report_counts()
                self.observer.thread_ended(self.pid, thread.tid)
                self.world.threads.remove(thread)
                self.machine.give_back(thread.processor)
            self.changed.notify_all()

    def become_child(self, thread: Thread, start: Snapshot) -> None:
        """In the child of a host fork, on the thread that forked: everything of its own, and the
        thread ready to run from `start`, which was taken before the fork."""
        self.parent, self.pid = self.pid, os.getpid()
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.world.after_fork(thread)
        self.memory.after_fork()
        self.own_files.after_fork()
        self.observer.became_child(self.parent, self.pid)
        with self.own_files.room():
            is_kept = self.machine.keep(thread.processor)
        self.own_files.forget_closed()
        self.leader = thread
        self.pending_image = None
        if not self.follow:
            self.policy = replace(self.policy, mode="off")
        thread.in_guest = thread.needs_flush = thread.must_end = False
        thread.robust_list = thread.clear_child_tid = 0
        if is_kept:
            thread.settle()
            thread.set_registers(start.regs)
            thread.vcpu.fs_base, thread.vcpu.gs_base = start.fs_base, start.gs_base
            if not self.policy.detects:
                thread.vcpu.set_msrs({IA32_DEBUGCTL: 0})
        else:
            with self.own_files.room():
                thread.use(self.machine.take_processor())
            thread.start(start)

    def current_thread(self) -> Thread | None:
        """The guest thread that the calling host thread runs."""
        return current_thread()

    def describe(self, linear: int) -> Description:
        """What kind of memory an address is in, and where in which file."""
        return describe(self, linear)

    # -- what comes out of the guest --------------------------------------------------------------

    def system_call(self, thread: Thread) -> None:
        system_call(thread)

    def exception(self, thread: Thread, vector: int) -> None:
        handle_exception(thread, vector)

    def attend(self, thread: Thread) -> None:
        """Something waits for the thread: its end, the end of the process, or signals."""
        if self.ending is not None or thread.must_end:
            raise EndThread
        lost = thread.signal_block.take_lost()
        if lost:
            handle_lost_page(thread, lost)
        self.signals.attend(thread)

    def bus_lock_trap(self, thread: Thread, rip: int) -> int:
        """The monitor took a bus-lock #DB; the signal that the policy asks for, or 0."""
        signal = self.policy.apply()
        self.observer.bus_lock_trap(self.pid, thread.tid, thread.name, rip)
        if self.policy.warns:
            self.warn(thread, rip)
        return signal

    def warn(self, thread: Thread, rip: int) -> None:
        """The kernel's own line (arch/x86/kernel/cpu/bus_lock.c), which tools look for."""
        self.say(
            f"x86/split lock detection: #DB: {thread.name}/{thread.tid} "
            f"took a bus_lock trap at address: {rip:#x}\n"
        )

    def say(self, text: str) -> None:
        """Tell the person at the terminal, even if the program has closed its own stderr."""
        if self._stderr is not None:
            with contextlib.suppress(OSError):
                os.write(self._stderr, text.encode("utf-8", "replace"))

    def unexpected_exit(self, thread: Thread, exit: exits.Exit) -> None:
        """An exit that a program under the monitor has no way to cause."""
        raise RuntimeError(f"the guest left with {exit} at {thread.vcpu.regs.rip:#x}")

    def release_parent(self) -> None:
        """The child of a vfork becomes another program or ends: its parent may go on."""
        link, self.vfork_link = self.vfork_link, None
        if link is not None:
            link.finish(self.memory)

    # -- the end ----------------------------------------------------------------------------------

    def end(self, outcome: Outcome) -> int:
        """End the whole process (exit_group, a fatal signal); does not return."""
        with self.changed:
            if self.ending is None:
                self.ending = outcome
                for thread in self.threads:
                    if thread.host_thread != threading.get_ident():
                        thread.interrupt()
            self.changed.notify_all()
        raise EndThread

    def fail(self, error: BaseException) -> int:
        """End the process because of a defect of the VMM; does not return."""
        self.failure = self.failure or error
        return self.end(Outcome(0, SIGKILL))

    def end_thread(self, thread: Thread, status: int) -> int:
        """exit: the thread ends, and the process with its last one; does not return."""
        with self.lock:
            thread.has_exited = True
            if all(other.has_exited or other.must_end for other in self.threads):
                self.end(Outcome(status))
        raise EndThread
