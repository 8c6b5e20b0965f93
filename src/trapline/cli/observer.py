"""Joins the rooms: hears the processor and the process, and tells the recorder.

Knows both sides' shapes and nothing else; runs on the guest threads' own host threads.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from contextlib import nullcontext
from ctypes import byref

from trapline.cli.kernel_log import KernelLog
from trapline.cli.standard_files import give_back
from trapline.process import Area, MappedFile, Outcome, Policy, Process, ProgramObserver, Thread
from trapline.processor import BusLock, Cause, compiler, disassemble
from trapline.processor import Outcome as Signalled
from trapline.trace import Recorder, Region, ThreadObserver, TraceWriter, find_culprit

GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)
PROT_EXEC = 4
_LIBC = ctypes.CDLL(None)
_LIBC.process_vm_readv.restype = ctypes.c_ssize_t
_LIBC.process_vm_readv.argtypes = [
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong),
    ctypes.c_ulong,
]


class StoppedThread:
    """A guest thread between two instructions, as the recorder asks for it."""

    def __init__(self, thread: Thread) -> None:
        self._thread = thread

    @property
    def tid(self) -> int:
        return self._thread.tid

    @property
    def name(self) -> str:
        return self._thread.name

    @property
    def bitness(self) -> int:
        return 64

    def registers(self) -> Mapping[str, int]:
        vcpu = self._thread.vcpu
        general = {name: getattr(vcpu.regs, name) for name in GENERAL}
        return {**general, "fs_base": vcpu.fs_base, "gs_base": vcpu.gs_base}

    def read(self, linear: int, size: int) -> bytes:
        return read_host(self._thread.process.memory.host(linear), size)

    def region(self, linear: int) -> Region | None:
        area = self._thread.process.memory.areas.find(linear)
        return None if area is None else region_of(area)


class TrappedThread(StoppedThread):
    """A guest thread in the monitor's #DB handler: its registers are in the monitor's frame."""

    def registers(self) -> Mapping[str, int]:
        registers, vcpu = self._thread.get_registers(), self._thread.vcpu
        general = {name: getattr(registers, name) for name in GENERAL}
        return {**general, "fs_base": vcpu.fs_base, "gs_base": vcpu.gs_base}


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


def read_host(host: int, size: int) -> bytes:
    """Memory of this process, as much of it as there is.

    Without the lock of the program's memory: whoever holds it may be waiting for this thread to
    come out of the guest.
    """
    buffer = ctypes.create_string_buffer(size)
    here = _Iovec(ctypes.addressof(buffer), size)
    there = _Iovec(host, size)
    done = _LIBC.process_vm_readv(os.getpid(), byref(here), 1, byref(there), 1, 0)
    return buffer.raw[: max(done, 0)]


def region_of(area: Area) -> Region:
    """An area as the trace keeps it."""
    path = area.file.path if area.file is not None else None
    offset = area.offset if area.file is not None else 0
    is_executable = bool(area.prot & PROT_EXEC)
    return Region(area.start, area.end, offset, path, area.name, is_executable, area.shared)


def _open_mapped(file: MappedFile) -> int | None:
    """A descriptor of a mapped file, or None where its path leads to another, or nowhere."""
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) == (file.device, file.inode):
        return descriptor
    os.close(descriptor)
    return None


class Watcher(ProgramObserver):
    """Everything that is recorded about one process and its children.

    `hears_processor`: Trapline's own processor tells of each bus lock; a real one only by #DB.
    `log`: who words the kernel's warnings, if they are wanted.
    """

    def __init__(
        self,
        recorder: Recorder,
        writer: TraceWriter,
        *,
        hears_processor: bool,
        log: KernelLog | None,
        follow: bool,
    ) -> None:
        self._recorder, self._writer = recorder, writer
        self._hears_processor, self._log, self._follow = hears_processor, log, follow
        self._is_silent = False  # in a child that is not followed
        self._process: Process | None = None
        self._held: dict[str, int] = {}  # the images of the program, once their paths may fail

    def _thread(self) -> Thread | None:
        """The guest thread that something happened to, if it is to be recorded."""
        if self._process is None or self._is_silent:
            return None
        return self._process.current_thread()

    # What the process says.

    def attached(self, process: Process) -> None:
        self._process = process
        self._writer.move(process.own_files.keep)
        self._recorder.room = process.own_files.room

    def started(self, pid: int, executable: str, arguments: list[str]) -> None:
        self._recorder.start(pid, 0, arguments, executable)
        give_back()  # Trapline's own files are all made, and are elsewhere

    def executed(self, pid: int, executable: str, arguments: list[str]) -> None:
        if not self._is_silent:
            self._recorder.executed(arguments, executable)
        while self._held and self._process is not None:
            self._process.own_files.close(self._held.popitem()[1])

    def unmapped(self, pid: int, area: Area) -> None:
        self._recorder.unmapped(area.start, area.end)

    def thread_started(self, pid: int, tid: int, stack_pointer: int) -> None:
        self._recorder.thread_started(tid, stack_pointer)

    def thread_ended(self, pid: int, tid: int) -> None:
        self._recorder.thread_ended(tid)

    def forked(self, pid: int, child: int) -> None:
        self._recorder.flush()

    def became_child(self, parent: int, pid: int) -> None:
        self._is_silent = not self._follow
        if self._follow:
            self._recorder.forked(pid, parent)
        compiler().progress = None

    def will_lose_files(self, pid: int) -> None:
        process = self._process
        if process is None or self._is_silent:
            return
        with process.memory.lock, process.own_files.room():  # all threads may be about to do so
            files = {area.file for area in process.memory.areas if area.prot & PROT_EXEC}
            for file in files:
                if file is not None and file.path not in self._held:
                    descriptor = _open_mapped(file)
                    if descriptor is not None:
                        self._held[file.path] = process.own_files.keep(descriptor)
            self._recorder.hold(self._held)

    def may_be_killed(self, pid: int) -> None:
        if not self._is_silent:
            self._recorder.flush()

    def ended(self, pid: int, outcome: Outcome) -> None:
        if self._is_silent:
            return
        code = None if outcome.signal else outcome.exit_status
        self._recorder.exited(code, outcome.signal or None)
        with nullcontext() if self._process is None else self._process.own_files.room():
            compiler().save()  # here, as no process of a guest leaves through Python's own exit

    def bus_lock_trap(self, pid: int, tid: int, name: str, rip: int) -> None:
        if self._log is not None and self._process is not None:
            line = self._log.bus_lock(name, tid, rip)
            if line:
                self._process.say(line)
        thread = None if self._hears_processor else self._thread()
        if thread is None:
            return
        trapped = TrappedThread(thread)
        lock = find_culprit(rip, trapped, disassemble)
        if lock is not None:
            self._recorder.bus_lock(lock, Signalled.DB, trapped)

    # What the processor says.

    def bus_lock(self, lock: BusLock, outcome: Signalled) -> None:
        thread = self._thread()
        if thread is not None:
            self._recorder.bus_lock(lock, outcome, StoppedThread(thread))

    def bus_lock_total(
        self, rip: int, next_rip: int, cause: Cause, size: int, cpl: int, linear: int, count: int
    ) -> None:
        thread = self._thread()
        if thread is not None:
            observer = ThreadObserver(self._recorder, StoppedThread(thread))
            observer.bus_lock_total(rip, next_rip, cause, size, cpl, linear, count)

    def undefined(self, rip: int, code: bytes, text: str) -> None:
        thread = self._thread()
        if thread is not None:
            self._recorder.undefined(rip, code, text, StoppedThread(thread))


class SilentPolicy(Policy):
    """A policy whose warnings are worded here, with the kernel's limit on their number."""

    @property
    def warns(self) -> bool:
        return False
