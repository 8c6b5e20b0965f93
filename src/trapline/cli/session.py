"""Runs the program in a process of its own, so that whatever ends it, the report is written."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from trapline.cli.failure import TOOL_ERROR, complain
from trapline.cli.progress import Progress
from trapline.trace import TraceWriter

# What one sends to `trapline trace` is meant for the program; Ctrl-C reaches it by itself.
FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
FROM_THE_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)


@dataclass(frozen=True)
class Session:
    """What to run, and how."""

    program: Sequence[str]
    policy: str = "warn"
    warns: bool = True  # print the kernel's lines where the policy has them
    follow: bool = True
    backend: str = "software"
    engine: str = "jit"


def run_session(session: Session, writer: TraceWriter) -> int:
    """Run the program to its end; the answer is its wait status."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    before = {number: signal.getsignal(number) for number in (*FROM_THE_KEYBOARD, *FORWARDED)}
    for number in FROM_THE_KEYBOARD:
        signal.signal(number, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        for number in FROM_THE_KEYBOARD:
            ignored = before[number] is signal.SIG_IGN
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
        _become_program(session, writer)
    for number in FORWARDED:
        signal.signal(number, lambda received, frame: _forward(child, received))
    try:
        importlib.import_module("trapline.report")  # now, while the program starts
        return os.waitpid(child, 0)[1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forward(child: int, received: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(child, received)


def _become_program(session: Session, writer: TraceWriter) -> NoReturn:
    """In the child: be the virtual machine that runs the program, until it ends."""
    status = TOOL_ERROR
    _close_own_files(writer)
    try:
        status = _run(session, writer)
    except Exception as error:  # a defect of Trapline, not of the program
        place = traceback.extract_tb(error.__traceback__)[-1]
        sentence = f"internal error: {type(error).__name__}: {error}"
        complain(f"{sentence} ({place.filename}:{place.lineno})", "TRAPLINE_DEBUG=1 shows more")
        if os.environ.get("TRAPLINE_DEBUG"):
            traceback.print_exc()
    finally:
        writer.close()
        os._exit(status)


def _close_own_files(writer: TraceWriter) -> None:
    """Close what this command has opened: to the program, the lowest free numbers are its own.

    What was handed to the command for the program does not close on exec; what Python opens does.
    """
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number > 2 and number != writer.descriptor:
            with contextlib.suppress(OSError):
                if not os.get_inheritable(number):
                    os.close(number)


def _run(session: Session, writer: TraceWriter) -> int:
    """Put hypervisor, program and recorder together."""
    # Here, not above: only a program that runs needs a processor.
    from trapline.cli.kernel_log import KernelLog
    from trapline.cli.observer import SilentPolicy, Watcher
    from trapline.kvm import open_kvm
    from trapline.process import ExecError, parse_policy, run_program
    from trapline.processor import compiler, disassemble
    from trapline.trace import Recorder

    recorder = Recorder(writer, disassemble, started=time.monotonic())
    policy = parse_policy(session.policy)
    watcher = Watcher(
        recorder,
        writer,
        hears_processor=session.backend == "software",
        log=KernelLog() if policy.warns and session.warns else None,
        follow=session.follow,
    )
    try:
        if session.backend == "software":
            compiler().progress = Progress()
            kvm = open_kvm("software", engine=session.engine, observer=watcher)
        else:
            kvm = open_kvm(session.backend)
        outcome = run_program(
            session.program,
            kvm=kvm,
            observer=watcher,
            policy=SilentPolicy(policy.mode, policy.rate),
            follow=session.follow,
        )
    except ExecError as error:
        complain(error.sentence, error.hint)
        return error.shell_status
    return outcome.shell_status
