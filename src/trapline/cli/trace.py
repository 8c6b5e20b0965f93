"""`trapline trace`: runs a program and reports the bus locks it took."""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from trapline import __version__
from trapline.cli.failure import Failure, complain, reason
from trapline.cli.report import add_report_options, write_report
from trapline.cli.session import Session, run_session
from trapline.cli.trace_file import close_trace, open_trace, trace_path
from trapline.trace import read_trace

if TYPE_CHECKING:
    from trapline.report import Summary

EPILOG = """\
examples:
  trapline trace -- ./program --its-option     options of the program stand after --
  trapline trace --error-exitcode 9 -- ./test  fail a build on bus locks
  trapline trace --policy fatal -- ./program   SIGBUS at the first one, as the kernel's fatal
  trapline trace --format json --report-file locks.json -- ./program

policies, as the kernel's split_lock_detect=:
  off           take no #DB; bus locks are counted without disturbing the program
  warn          print the kernel's line, with its limit of ten lines in five seconds
  fatal         end the program with SIGBUS
  ratelimit:N   let at most N a second through

The program's input and output are its own; the report goes to stderr, or to --report-file.
The exit status is the program's (128 + N if signal N killed it), unless --error-exitcode says
otherwise; 127 and 126 if it cannot be started; 2 if Trapline itself fails.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.epilog = EPILOG
    parser.usage = "trapline trace [OPTIONS] [--] PROGRAM [ARGS...]"
    parser.add_argument(
        "--policy", type=policy, default="warn", metavar="P",
        help="off, warn, fatal or ratelimit:N (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help="keep the trace, for `trapline report`")
    parser.add_argument("--report-file", metavar="FILE", help="the report goes here, not to stderr")
    add_report_options(parser)
    parser.add_argument(
        "--error-exitcode", type=exit_code, metavar="N",
        help="exit with N (1 to 255) if there were bus locks",
    )  # fmt: skip
    parser.add_argument("--no-follow", action="store_true", help="let child processes run untraced")
    parser.add_argument(
        "--backend", choices=("software", "host"), default="software",
        help="Trapline's own processor, or this machine's through /dev/kvm",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=("jit", "interp"), default="jit",
        help="how the software processor executes: fast, or the slow reference",
    )  # fmt: skip
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def policy(text: str) -> str:
    """A policy, checked here so that a wrong one fails before anything runs."""
    name, colon, number = text.partition(":")
    if name in ("off", "warn", "fatal") and not colon:
        return text
    if name == "ratelimit" and number.isascii() and number.isdigit() and 1 <= int(number) <= 1000:
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is none of off, warn, fatal, ratelimit:N (N from 1 to 1000)"
    )


def exit_code(text: str) -> int:
    """An exit status that says something went wrong."""
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 255:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no exit status from 1 to 255")


def run(options: argparse.Namespace) -> int:
    """Trace the program and print the report."""
    program = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not program:
        raise Failure("no program to trace", "trapline trace -- PROGRAM [ARGS...]")
    session = Session(
        program,
        options.policy,
        follow=not options.no_follow,
        backend=options.backend,
        engine=options.engine,
    )
    _refuse_one_file_for_both(options.output, options.report_file)
    with _report_stream(options) as stream:
        status, summary = trace(session, options.output)
        if summary is None:
            return status
        try:
            write_report(summary, stream, options)
            if stream is not None and stream is not sys.stderr:
                stream.close()
        except OSError as error:
            complain(f"cannot write the report: {reason(error)}")
    if summary.total and options.error_exitcode:
        return int(options.error_exitcode)
    return status


def trace(session: Session, output: str | None) -> tuple[int, Summary | None]:
    """Run a session: (its exit status, what it took); None where it could not be started."""
    with trace_path(output) as path:
        header = {"tool": f"trapline {__version__}", "policy": session.policy}
        writer = open_trace(path, {**header, "backend": session.backend}, output or path)
        wait_status = run_session(session, writer)
        recorded = read_trace(path)
        if not recorded.pids:
            writer.close()
            return os.waitstatus_to_exitcode(wait_status), None
        first = recorded.ended.get(recorded.pids[0])
        code, signal = _ending(wait_status) if first is None else (first["code"], first["signal"])
        status = 128 + signal if signal else code
        writer.write({"record": "end", "exit_status": status, "signal": signal})
        close_trace(writer, output or path)
        from trapline.report import summarize

        return status, summarize(read_trace(path))


def _ending(wait_status: int) -> tuple[int, int | None]:
    """(exit code, signal) of a process that left no word in the trace."""
    if os.WIFSIGNALED(wait_status):
        return 0, os.WTERMSIG(wait_status)
    return os.waitstatus_to_exitcode(wait_status), None


@contextlib.contextmanager
def _report_stream(options: argparse.Namespace) -> Iterator[TextIO | None]:
    """Where the report goes, opened before the program runs, so that mistakes cost nothing."""
    if options.report_file is None:
        yield sys.stderr
        return
    try:
        path = Path(options.report_file)
        stream = path.open("w", encoding="utf-8")
    except OSError as error:
        raise Failure(f"cannot write {options.report_file}: {reason(error)}") from None
    try:
        yield stream
    finally:
        with contextlib.suppress(OSError):  # said by who wrote
            stream.close()


def _refuse_one_file_for_both(output: str | None, report_file: str | None) -> None:
    """The trace and the report would overwrite each other."""
    if output is None or report_file is None:
        return
    is_same = os.path.realpath(output) == os.path.realpath(report_file)
    with contextlib.suppress(OSError):  # not there yet
        found = os.stat(output)
        is_file = stat.S_ISREG(found.st_mode)
        is_same = is_file and (is_same or os.path.samestat(found, os.stat(report_file)))
    if is_same:
        raise Failure(
            f"{report_file} cannot be both the trace and the report",
            "give --output and --report-file two files",
        )
