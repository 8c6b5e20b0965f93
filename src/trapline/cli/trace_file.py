"""Where a trace is written to, and what to say when that goes wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator

from trapline.cli.failure import Failure, complain, reason
from trapline.trace import TraceWriter


@contextlib.contextmanager
def trace_path(output: str | None) -> Iterator[str]:
    """Where the trace is written: the file asked for, or memory; a pipe gets it at the end."""
    if output is not None and _is_plain(output):
        yield output
        return
    if output is not None and os.path.isdir(output):
        raise Failure(f"cannot write {output}: Is a directory")
    descriptor = os.memfd_create("trapline-trace", os.MFD_CLOEXEC)
    # By the parent's number, as children look for it under their own.
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    try:
        yield path
        if output is not None:
            _hand_over(path, output)
    finally:
        os.close(descriptor)


def _hand_over(path: str, output: str) -> None:
    """Copy a whole trace to what cannot be appended to: a pipe, a terminal, a device."""
    try:
        with open(path, "rb") as source, open(output, "wb") as target:
            shutil.copyfileobj(source, target)
    except OSError as error:
        complain(f"cannot write {output}: {reason(error)}")


def _is_plain(path: str) -> bool:
    """A regular file, or one that is yet to be made: what can be appended to and read back."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def open_trace(path: str, header: dict[str, str], name: str) -> TraceWriter:
    """Begin the trace; `name` is what the user calls the file."""
    try:
        writer = TraceWriter(path, header)
    except OSError as error:
        raise Failure(f"cannot write {name}: {reason(error)}") from None
    if writer.problem:
        raise Failure(f"cannot write {name}: {writer.problem}")
    return writer


def close_trace(writer: TraceWriter, name: str) -> None:
    """End it, and say so if it is not whole."""
    writer.close()
    if writer.problem:
        hint = "what was recorded can be read; the counts in it are too low"
        complain(f"the trace {name} is incomplete: {writer.problem}", hint)
