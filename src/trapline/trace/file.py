"""The trace file: JSON Lines, a versioned header, then one record a line.

All processes append to one file with O_APPEND, a record in one write: it is whole, or (a killed
writer, a full disk) a broken line that the reader passes over.  One file needs no merging.
Nothing here knows what the records mean.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

VERSION = 1
MAGIC = "trapline_trace"
STANDARD_INPUT = "-"
Record = dict[str, Any]

# Above what shells and programs use, so that the guest's own descriptors stay its own.
HIGH_DESCRIPTOR = 900
READING = os.O_RDONLY | os.O_CLOEXEC
APPENDING = os.O_WRONLY | os.O_APPEND
PENDING_BYTES = 1 << 20


class TraceError(Exception):
    """The file is no trace that can be read; the text is one plain sentence."""


class TraceWriter:
    """Appends records; keeps what a full disk refused, tries again, and says so in `problem`."""

    def __init__(self, path: str, header: Record) -> None:
        self.path = os.path.abspath(path)
        self._lock = threading.Lock()
        self._reason = ""
        self._pending: list[bytes] = []
        self._is_line_broken = False
        self._dropped = 0
        self._descriptor = open_high(self.path, APPENDING | os.O_CREAT | os.O_TRUNC)
        self._identity = _identity(self._descriptor)
        self.write({MAGIC: VERSION, **header})

    @property
    def problem(self) -> str | None:
        """Why records are missing from the file, or None while none are."""
        return self._reason if self._pending or self._dropped else None

    @property
    def descriptor(self) -> int:
        """The descriptor in use, for whoever must keep the guest from closing it."""
        return self._descriptor

    def move(self, place: Callable[[int], int]) -> None:
        """Have the descriptor moved to where `place` puts it."""
        with self._lock:
            self._descriptor = place(self._descriptor)

    def forked(self) -> None:
        """In a new child: what the parent had not yet written stays the parent's."""
        self._lock = threading.Lock()
        self._pending = []
        self._is_line_broken = False

    def write(self, *records: Record) -> None:
        """Append records, each as one line in one write."""
        lines = [json.dumps(r, separators=(",", ":")).encode() + b"\n" for r in records]
        with self._lock:
            self._pending += lines
            self._drain()

    def close(self) -> None:
        """Try once more what is pending, and close."""
        with self._lock:
            self._drain()
            with contextlib.suppress(OSError):
                os.close(self._descriptor)

    def _drain(self) -> None:
        while self._pending:
            line = (b"\n" if self._is_line_broken else b"") + self._pending[0]
            try:
                written = self._append(line)
            except OSError as error:
                self._fail(error.strerror or str(error))
                return
            if written < len(line):  # the disk is full, or a file size limit was reached
                self._is_line_broken = self._is_line_broken or written > 0
                self._fail("No space left on device")
                return
            self._is_line_broken = False
            del self._pending[0]

    def _append(self, line: bytes) -> int:
        """Write once; if the guest closed or replaced our descriptor, open the file again."""
        if not self._is_ours():
            self._descriptor = open_high(self.path, APPENDING)
            self._identity = _identity(self._descriptor)
        return _write(self._descriptor, line)

    def _is_ours(self) -> bool:
        try:
            return _identity(self._descriptor) == self._identity
        except OSError:
            return False

    def _fail(self, reason: str) -> None:
        self._reason = reason
        while sum(map(len, self._pending)) > PENDING_BYTES:
            del self._pending[0]
            self._dropped += 1


def open_high(path: str, flags: int) -> int:
    """A descriptor out of the guest's way."""
    descriptor = os.open(path, os.O_CLOEXEC | flags, 0o666)
    try:
        high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, HIGH_DESCRIPTOR)
    except OSError:  # a low RLIMIT_NOFILE
        return descriptor
    os.close(descriptor)
    return high


def _write(descriptor: int, line: bytes) -> int:
    """os.write, without the SIGXFSZ that a file size limit has for who writes beyond it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXFSZ})
    try:
        return os.write(descriptor, line)
    except OSError as error:
        if error.errno == errno.EFBIG:
            signal.sigtimedwait({signal.SIGXFSZ}, 0)
        raise
    finally:
        if signal.SIGXFSZ not in before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGXFSZ})


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


class TraceFile:
    """Reads a trace's header at once and its records, once, as they are asked for.

    From one stream: what comes through a pipe cannot be opened a second time.
    """

    def __init__(self, path: str) -> None:
        self.path = "standard input" if path == STANDARD_INPUT else path
        self.damaged_lines = 0
        self.is_cut_short = False
        try:
            descriptor = os.dup(0) if path == STANDARD_INPUT else os.open(path, READING)
            self._stream = os.fdopen(descriptor, "rb")
            self.header = self._parse_header(self._stream.readline(1 << 20))
        except IsADirectoryError:
            raise TraceError(f"{self.path} is a directory, not a trace file") from None
        except OSError as error:
            raise TraceError(f"cannot read {self.path}: {error.strerror}") from None

    def __del__(self) -> None:
        if hasattr(self, "_stream"):  # who wants the header alone leaves the records
            self._stream.close()

    def records(self) -> Iterator[Record]:
        """Every whole record; broken lines are counted, a broken last line is expected."""
        with self._stream as stream:
            for line in stream:
                self.is_cut_short = not line.endswith(b"\n")
                if not line.strip():
                    continue
                record = _parse(line)
                if record is not None:
                    yield record
                elif not self.is_cut_short:
                    self.damaged_lines += 1

    def _parse_header(self, line: bytes) -> Record:
        header = _parse(line)
        if header is None or MAGIC not in header:
            raise TraceError(f"{self.path} is not a Trapline trace")
        if header[MAGIC] != VERSION:
            raise TraceError(
                f"{self.path} was written by a newer Trapline"
                f" (trace version {header[MAGIC]}; this one reads {VERSION})"
            )
        return header


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # bad JSON, bad UTF-8, brackets without end
        return None
    return record if isinstance(record, dict) else None
