"""What a program reads about itself: /proc/self/exe, maps and their like tell of the program, not
of the VMM that runs it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from trapline.process.areas import PROT_EXEC, PROT_READ, PROT_WRITE, Area
from trapline.process.memory import GuestFault

if TYPE_CHECKING:
    from trapline.process.process import Process
    from trapline.process.thread import Thread

_MADE_UP = frozenset({b"maps", b"smaps", b"cmdline", b"environ", b"auxv"})


class Paths:
    """Paths that mean something else for the program than for the host."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def translate(self, thread: Thread, linear: int) -> int:
        """A host pointer to the path to use."""
        host = self._process.memory.pointer(linear)
        entry = self._own_entry(linear)
        if entry != b"exe" or self._process.image is None:
            return host
        thread.scratch = ctypes.create_string_buffer(os.fsencode(self._process.image.path))
        return ctypes.addressof(thread.scratch)

    def followed(self, path: bytes) -> bytes:
        """The path to open in place of this one."""
        if self._entry_of(path) == b"exe" and self._process.image is not None:
            return os.fsencode(self._process.image.path)
        return path

    def link_text(self, thread: Thread, linear: int) -> bytes | None:
        """What readlink answers, where it is not what the host would say."""
        if self._own_entry(linear) == b"exe" and self._process.image is not None:
            return os.fsencode(self._process.image.path)
        return None

    def open_made_up(self, thread: Thread, linear: int, close_on_exec: bool) -> int | None:
        """A descriptor of a file with the program's own view, or None for ordinary paths."""
        entry = self._own_entry(linear)
        if entry not in _MADE_UP or self._process.image is None:
            return None
        fd = os.memfd_create(entry.decode(), os.MFD_CLOEXEC if close_on_exec else 0)
        with open(fd, "wb", closefd=False) as file:
            file.write(self._content(entry))
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def lists_descriptors(self, fd: int) -> bool:
        """Whether a descriptor is of this process's /proc/PID/fd or a folder like it."""
        try:
            parts = os.readlink(f"/proc/self/fd/{fd}").split("/")
        except OSError:
            return False
        return (
            parts[:2] == ["", "proc"]
            and parts[2:3] == [str(self._process.pid)]
            and parts[-1] in ("fd", "fdinfo")
        )

    def _own_entry(self, linear: int) -> bytes:
        """ "exe" for any of the names of /proc/self/exe, and so on; empty for all else."""
        try:
            head = self._process.memory.read_some(linear, 6)
            if head != b"/proc/":
                return b""
            return self._entry_of(self._process.memory.read_string(linear, 4096))
        except (GuestFault, OSError):
            return b""

    def _entry_of(self, path: bytes) -> bytes:
        parts = path.split(b"/")
        if parts[:2] != [b"", b"proc"]:
            return b""
        if len(parts) > 4 and parts[3] == b"task" and self._is_own_thread(parts[4]):
            parts[3:5] = []
        if len(parts) == 4 and (parts[2] in (b"self", b"thread-self") or self._is_self(parts[2])):
            return parts[3]
        return b""

    def _is_self(self, name: bytes) -> bool:
        return name == b"%d" % self._process.pid

    def _is_own_thread(self, name: bytes) -> bool:
        return any(name == b"%d" % thread.tid for thread in self._process.threads)

    def _content(self, entry: bytes) -> bytes:
        image = self._process.image
        assert image is not None
        if entry in (b"maps", b"smaps"):
            return format_maps(self._process.memory.areas)
        if entry == b"auxv":
            start, end = image.initial.auxiliary
        else:
            start, end = (
                image.initial.arguments if entry == b"cmdline" else image.initial.environment
            )
        return self._process.memory.read_some(start, end - start)


def format_maps(areas: Iterable[Area]) -> bytes:
    """The text of /proc/PID/maps (fs/proc/task_mmu.c, show_map_vma)."""
    lines = []
    for area in areas:
        rights = "".join(
            letter if area.prot & bit else "-"
            for bit, letter in ((PROT_READ, "r"), (PROT_WRITE, "w"), (PROT_EXEC, "x"))
        ) + ("s" if area.shared else "p")
        device = inode = 0
        name = area.name
        if area.file is not None:
            device, inode, name = area.file.device, area.file.inode, area.file.path
        line = (
            f"{area.start:08x}-{area.end:08x} {rights} {area.offset:08x} "
            f"{os.major(device):02x}:{os.minor(device):02x} {inode} "
        )
        lines.append((line.ljust(73) + name if name else line).encode("utf-8", "surrogateescape"))
    return b"\n".join(lines) + b"\n"
