"""How a process begins, becomes another program and ends.

The loop in `run_leader` belongs to the host thread whose id is the process's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
from typing import TYPE_CHECKING, NoReturn

from trapline.kvm import Regs
from trapline.process.cpuid import hardware_capabilities
from trapline.process.events import Outcome
from trapline.process.futex import clear_tid, release_robust_list
from trapline.process.load import Image, Plan, load
from trapline.process.mapping import unmap_memory
from trapline.process.memory import GuestMemory
from trapline.process.syscalls.table import NUMBERS
from trapline.process.thread import EndThread, Thread

if TYPE_CHECKING:
    from trapline.process.process import Process

_START_RFLAGS = 0x202
_PR_SET_NAME, _PR_SET_MM, _PR_SET_MM_MAP = 15, 35, 14
_PRCTL_MM_MAP = struct.Struct("<12QIi")
_SIGKILL = 9
_INFINITY = (1 << 64) - 1


def load_program(process: Process, planned: Plan) -> Regs:
    """Put a program into the empty address space; the registers it starts with."""
    try:
        machine = process.machine
        image = load(
            process.memory,
            planned,
            hardware_capabilities(machine.cpuid),
            machine.extended_state.signal_stack,
        )
    finally:
        planned.close()
    is_first, process.image = process.image is None, image
    _tell_kernel(process.memory, image)
    tell = process.observer.started if is_first else process.observer.executed
    tell(process.pid, image.path, [os.fsdecode(text) for text in image.arguments])
    return Regs(rip=image.entry, rsp=image.initial.rsp, rflags=_START_RFLAGS)


def start_program(process: Process, planned: Plan) -> Thread:
    """The first thread of a new process, ready to run."""
    thread = process.leader = process.new_thread()
    regs = load_program(process, planned)
    thread.start(regs)
    process.signals.take_over(thread)
    process.observer.thread_started(process.pid, thread.tid, regs.rsp)
    rename(thread, os.path.basename(os.fsdecode(planned.named)))
    return thread


def run_leader(process: Process, thread: Thread) -> Outcome:
    """Run the first thread, then wait for the others; a child of a fork does not return."""
    thread.run()
    return run_to_end(process, thread)


def run_to_end(process: Process, thread: Thread) -> Outcome:
    """The loop of a process's first thread is over: see to the rest, or to another program."""
    while True:
        leave_thread(thread)
        planned = _wait_for_rest(process, thread)
        if planned is None:
            break
        with contextlib.suppress(EndThread):
            replace_program(process, thread, planned)
            process.signals.attend(thread)
        thread.run()
    if process.failure is not None:
        raise process.failure
    process.thread_ended(thread)
    process.release_parent()
    process.machine.close()
    assert process.ending is not None
    process.observer.ended(process.pid, process.ending)
    if process.parent:
        leave_host_process(process, process.ending)
    process.signals.give_back(thread)
    return process.ending


def leave_thread(thread: Thread) -> None:
    """A thread is over: tell who waits for it, and give back what it has."""
    process = thread.process
    process.signals.ended(thread)
    release_robust_list(thread)
    clear_tid(thread)
    thread.is_over = True
    if process.leader is not thread:
        thread.signal_block.leave(thread.quiet)
        process.thread_ended(thread)
    with process.changed:
        process.changed.notify_all()


def _wait_for_rest(process: Process, thread: Thread) -> Plan | None:
    """Once the leader's own loop is over: the process's end, or a program to run next."""
    with process.changed:
        while True:
            if process.pending_image is not None:
                planned, process.pending_image = process.pending_image, None
                return planned
            if process.ending is not None and process.threads in ([], [thread]):
                return None
            for other in process.threads:
                if other is not thread and process.ending is not None:
                    other.interrupt()
            process.changed.wait(0.01 if process.ending else 1)


def leave_host_process(process: Process, outcome: Outcome) -> NoReturn:
    """End a forked VMM the way its program ended, so that whoever waits sees the right status."""
    if outcome.signal:
        process.signals.die_of(outcome.signal)
    os._exit(outcome.exit_status)


def execute(process: Process, thread: Thread, planned: Plan) -> None:
    """execve past the point of no return: other threads end, the old program goes."""
    if process.parent and not process.follow:
        _execute_natively(process, thread, planned)
    leader = process.leader
    assert leader is not None
    if thread is not leader:
        # The new program is the first thread's, whose id is the process's.
        with process.changed:
            process.pending_image = planned
            leader.signals.mask = thread.signals.mask
            for other in process.threads:
                other.must_end = True
                if other is not thread:
                    other.interrupt()
            process.changed.notify_all()
        raise EndThread
    end_others(process, thread)
    replace_program(process, thread, planned)


def _execute_natively(process: Process, thread: Thread, planned: Plan) -> NoReturn:
    """A child that is not followed: its next program is the host's."""
    end_others(process, thread)
    thread.vcpu.report_counts()
    process.release_parent()
    process.signals.leave_to_host(thread)
    for which, limits in process.limits.items():
        with contextlib.suppress(OSError, ValueError):
            soft, hard = (-1 if limit == _INFINITY else limit for limit in limits)
            resource.setrlimit(which, (soft, hard))
    environment: dict[bytes, bytes] = {}
    for text in planned.environment:
        name, _, value = text.partition(b"=")
        environment[name] = value
    try:
        os.execve(planned.path, planned.arguments, environment)
    finally:  # there is no program to go back to
        os._exit(127)


def end_others(process: Process, thread: Thread) -> None:
    """Have every other thread end, and wait until they have."""
    with process.changed:
        for other in process.threads:
            if other is not thread:
                other.must_end = True
        while any(other is not thread and not other.is_over for other in process.threads):
            for other in process.threads:
                if other is not thread:
                    other.interrupt()
            process.changed.wait(0.01)


def replace_program(process: Process, thread: Thread, planned: Plan) -> None:
    """Empty the process and start another program on its one thread."""
    end_others(process, thread)
    thread.vcpu.report_counts()  # of the old program, while its addresses still mean something
    for hook in process.on_execute:
        hook(thread)
    process.release_parent()
    thread.must_end = thread.has_exited = thread.is_over = False
    release_robust_list(thread)
    clear_tid(thread)
    clear_memory(process.memory)
    with process.own_files.room():
        try:
            regs = load_program(process, planned)
        except OSError:
            process.end(Outcome(0, _SIGKILL))  # as the kernel does past the point of no return
        _close_on_exec(process)
    rename(thread, os.path.basename(os.fsdecode(planned.named)))
    thread.vcpu.fs_base = thread.vcpu.gs_base = 0
    thread.reset_fpu()
    thread.stack_pointer = regs.rsp
    thread.set_registers(regs)


def rename(thread: Thread, name: str) -> None:
    """What ps shows: the host thread is called as the guest's."""
    text = os.fsencode(name)[:15]
    thread.name = text.decode("utf-8", "replace")
    buffer = ctypes.create_string_buffer(text)
    thread.quiet(NUMBERS["prctl"], _PR_SET_NAME, ctypes.addressof(buffer))


def clear_memory(memory: GuestMemory) -> None:
    """Give every area back, and the page tables with them."""
    with memory.lock:
        for area in memory.areas:
            unmap_memory(memory, area.start, area.size)
        memory.machine.forget_tables()
        memory.world.flush()
        memory.has_writable_code = False


def _close_on_exec(process: Process) -> None:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        with contextlib.suppress(OSError):
            if fd not in process.own_files and not os.get_inheritable(fd):
                os.close(fd)


def _tell_kernel(memory: GuestMemory, image: Image) -> None:
    """Have /proc/PID/cmdline, environ and auxv show the program, for everyone who looks.

    Kernels without PR_SET_MM_MAP go on showing the VMM to others; the program itself is served
    by `procfs` in any case.
    """
    host, initial = memory.host, image.initial
    auxiliary, auxiliary_end = initial.auxiliary
    # The break stays the VMM's own: the kernel, asked to move it, would go by these numbers.
    with open("/proc/self/stat", "rb") as file:
        start_break = int(file.read().rsplit(b")", 1)[1].split()[44])
    fields = [
        *(host(place) for place in (*image.code, *image.data)),
        start_break, memory.calls(NUMBERS["brk"], 0), host(initial.rsp),
        *(host(place) for place in (*initial.arguments, *initial.environment)),
        host(auxiliary),
    ]  # fmt: skip
    request = _PRCTL_MM_MAP.pack(*fields, auxiliary_end - auxiliary, -1)
    buffer = ctypes.create_string_buffer(request, len(request))
    with memory.lock:
        memory.calls(
            NUMBERS["prctl"], _PR_SET_MM, _PR_SET_MM_MAP, ctypes.addressof(buffer), len(request), 0
        )
