"""What makes a fork a vfork: the parent waits, and finds in memory what its child has written.

The child really has a copy.  It notes each page before the page is first written, and sends the
bytes that have changed when it becomes another program or ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from typing import TYPE_CHECKING

from trapline.process.journal import apply_changes
from trapline.process.signal_entry import ALL, INTERRUPT_SIGNAL, set_host_mask
from trapline.process.signal_state import bit
from trapline.process.syscalls.table import NUMBERS

if TYPE_CHECKING:
    from trapline.process.memory import GuestMemory
    from trapline.process.own_files import OwnFiles
    from trapline.process.thread import Thread

_POLLIN = 1
_CHUNK = 1 << 16
_FOREVER = (1 << 64) - 1


class ChildLink:
    """The child's end."""

    def __init__(self, fd: int, own_files: OwnFiles) -> None:
        self._fd = fd
        self._own_files = own_files

    def finish(self, memory: GuestMemory) -> None:
        """Send what has changed, and let the parent go on."""
        journal = memory.end_journal()
        if journal is not None:
            with self._own_files.room():
                copied = os.dup(self._fd)
            with socket.socket(fileno=copied) as way, contextlib.suppress(OSError):
                way.sendall(journal.changes(), socket.MSG_NOSIGNAL)
        self.close()

    def close(self) -> None:
        self._own_files.close(self._fd)


class ParentLink:
    """The parent's end."""

    def __init__(self, fd: int, own_files: OwnFiles) -> None:
        self._fd = fd
        self._own_files = own_files

    def wait(self, thread: Thread) -> None:
        """Wait for the child, with all signals put off, and take what it has written."""
        process, parts = thread.process, []
        set_host_mask(thread.quiet, ALL & ~bit(INTERRUPT_SIGNAL))
        wanted = ctypes.create_string_buffer(struct.pack("<ihh", self._fd, _POLLIN, 0), 8)
        while True:
            thread.calls.words[0] = 0
            if process.ending is not None or thread.must_end:
                break
            if thread.calls(NUMBERS["poll"], ctypes.addressof(wanted), 1, _FOREVER) > 0:
                part = os.read(self._fd, _CHUNK)
                if not part:
                    break
                parts.append(part)
        set_host_mask(thread.quiet, ALL)
        apply_changes(process.memory, b"".join(parts))

    def close(self) -> None:
        self._own_files.close(self._fd)


def open_link(own_files: OwnFiles) -> tuple[ParentLink, ChildLink]:
    """The two ends for a child about to be forked."""
    with own_files.room():
        ours, its = socket.socketpair()
    return (
        ParentLink(own_files.keep(ours.detach()), own_files),
        ChildLink(own_files.keep(its.detach()), own_files),
    )
