"""The program's memory: where it lies on the host, what may be done with it, page faults.

The mmap family changes it (`mapping`); here it is read, written, translated and filled in.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from dataclasses import dataclass, replace
from typing import Protocol

from trapline.arch.exception import PF_FETCH, PF_WRITE
from trapline.arch.paging import PTE_NX, PTE_P, PTE_W
from trapline.process import layout
from trapline.process.areas import PAGE, PROT_EXEC, PROT_READ, PROT_WRITE, Area, AreaMap
from trapline.process.journal import Journal
from trapline.process.machine import GuestMachine
from trapline.process.native import HostCalls
from trapline.process.page_tables import TABLE_SPAN, user_flags

SIGBUS, SIGSEGV = 7, 11
SEGV_MAPERR, SEGV_ACCERR = 1, 2
BUS_ADRERR = 2

_MMAP, _READV, _WRITEV = 9, 310, 311  # the last two process_vm_readv, process_vm_writev
_PRIVATE_ANONYMOUS_FIXED = 0x32
_IOVEC = struct.Struct("<2Q")


@dataclass(frozen=True, slots=True)
class Fault:
    """A page fault that is the program's own doing: the signal to send."""

    signal: int
    code: int
    linear: int


class GuestFault(OSError):
    """A pointer of the program that points at nothing it may use."""

    def __init__(self) -> None:
        super().__init__(errno.EFAULT, "bad address")


class World(Protocol):
    """Who must hear of it when the address space changes."""

    def flush(self) -> None:
        """Make every processor forget translations before it runs on."""

    def mapped(self, area: Area) -> None: ...

    def unmapped(self, area: Area) -> None: ...


class GuestMemory:
    """One address space.  `lock` guards areas and page tables together."""

    def __init__(self, machine: GuestMachine, world: World) -> None:
        self.machine = machine
        self.world = world
        self.low_base = machine.low_base
        # Where the program's page 0 would be, which is never mapped: the kernel answers EFAULT
        # for it, if and when it looks there.
        self.bad_pointer = machine.low_base
        self.areas = AreaMap()
        self.lock = threading.RLock()
        self.calls = HostCalls()  # for use under the lock
        self._own = threading.local()  # each thread's, for use without it
        self.journal: Journal | None = None
        # Whether there is memory that holds code, or once did, and that calls can write to.
        self.has_writable_code = False
        self.brk_start = 0
        self.brk_end = 0

    def begin_journal(self) -> None:
        """From now on note each private page before it is first written."""
        with self.lock:
            self.journal = Journal(self)
            self.machine.forget_tables()  # pages become writable again one by one
            self.world.flush()

    def end_journal(self) -> Journal | None:
        """What was noted, if anything was."""
        journal, self.journal = self.journal, None
        return journal

    def after_fork(self) -> None:
        """In a child: the lock may have been another thread's."""
        self.lock = threading.RLock()

    def changed(self, area: Area) -> None:
        """Say that an area is there now, or may be executed now."""
        if area.file is not None:
            self.world.mapped(area)

    def will_change(self, before: int, prot: int) -> None:
        """An area is about to have these rights: may calls of the host put code into it?"""
        if before & ~prot & PROT_EXEC or prot & PROT_WRITE and prot & PROT_EXEC:
            self.has_writable_code = True

    def was_written(self, linear: int, size: int) -> None:
        """The host has, or may have, stored something there for the program."""
        if self.has_writable_code:
            self.machine.forget_code(linear, linear + size)

    def removed(self, area: Area) -> None:
        if area.file is not None:
            self.world.unmapped(area)

    # -- pointers -------------------------------------------------------------------------------

    def host(self, linear: int) -> int:
        return linear if linear >= layout.LOW_SIZE else self.low_base + linear

    def pointer(self, linear: int) -> int:
        """A system call's pointer, for the host: NULL stays, what is not the program's is bad."""
        if self.areas.find(linear) is not None:
            if self.journal is not None:
                self.journal.touch(linear)
            return linear if linear >= layout.LOW_SIZE else self.low_base + linear
        return linear and self.bad_pointer

    def read(self, linear: int, size: int) -> bytes:
        """Bytes of the program's memory; GuestFault if it may not read them itself."""
        data = self.read_some(linear, size)
        if len(data) != size:
            raise GuestFault
        return data

    def read_some(self, linear: int, size: int) -> bytes:
        """Up to `size` bytes: as many as there are before the first unreadable page."""
        # Who holds the lock may be waiting for this very thread to leave the guest.
        if self.lock.acquire(blocking=False):
            try:
                whole = self.areas.find(linear)
                # Memory without a file is there as long as the area is; of a file the end can go.
                if whole and whole.file is None and whole.prot and linear + size <= whole.end:
                    return ctypes.string_at(self.host(linear), size)
            finally:
                self.lock.release()
        parts = []
        for area in self.areas.between(linear, linear + size):
            if area.start != linear or not area.prot:
                break
            buffer = ctypes.create_string_buffer(area.size)
            done = self._transfer(_READV, ctypes.addressof(buffer), area.start, area.size)
            parts.append(buffer.raw[:done])
            if done < area.size:
                break
            linear = area.end
        return b"".join(parts)

    def write(self, linear: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes; GuestFault if the program could not do it itself."""
        data = bytes(data)
        if self.journal is not None:
            self.journal.touch(linear, len(data))
        try:
            self._write(linear, data)
        finally:
            self.was_written(linear, len(data))

    def _write(self, linear: int, data: bytes) -> None:
        with self.lock:
            whole = self.areas.find(linear)
            if whole and whole.file is None and linear + len(data) <= whole.end:
                if not whole.prot & PROT_WRITE:
                    raise GuestFault
                ctypes.memmove(self.host(linear), data, len(data))
                return
        done = 0
        for area in self.areas.between(linear, linear + len(data)):
            if area.start != linear + done or not area.prot & PROT_WRITE:
                break
            part = data[done : done + area.size]
            buffer = ctypes.create_string_buffer(part, len(part))
            if self._transfer(_WRITEV, ctypes.addressof(buffer), area.start, len(part)) < len(part):
                break
            done += len(part)
        if done != len(data):
            raise GuestFault

    def read_string(self, linear: int, limit: int = 1 << 17) -> bytes:
        """A zero-terminated string; ENAMETOOLONG past the limit."""
        parts: list[bytes] = []
        size = 0
        while size < limit:
            part = self.read_some(linear, PAGE - linear % PAGE)
            if not part:
                raise GuestFault
            end = part.find(0)
            if end >= 0:
                parts.append(part[:end])
                return b"".join(parts)
            parts.append(part)
            size += len(part)
            linear += len(part)
        raise OSError(errno.ENAMETOOLONG, "string too long")

    def read_word(self, linear: int) -> int:
        return int.from_bytes(self.read(linear, 8), "little")

    def write_word(self, linear: int, word: int) -> None:
        self.write(linear, (word & (1 << 64) - 1).to_bytes(8, "little"))

    def _transfer(self, number: int, buffer: int, linear: int, size: int) -> int:
        """Copy through the kernel, which answers with a count where a plain copy would crash."""
        local = ctypes.create_string_buffer(_IOVEC.pack(buffer, size), 16)
        remote = ctypes.create_string_buffer(_IOVEC.pack(self.host(linear), size), 16)
        calls = getattr(self._own, "calls", None)
        if calls is None:
            calls = self._own.calls = HostCalls()
        done = calls(
            number, os.getpid(), ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0
        )
        return max(done, 0)

    # -- page faults ----------------------------------------------------------------------------

    def fault(self, linear: int, error: int) -> Fault | None:
        """Fill in the pages around a faulting address, or say what signal it earns."""
        with self.lock:
            area = self.areas.find(linear) if linear < layout.USER_END else None
            if area is None:
                return Fault(SIGSEGV, SEGV_MAPERR, linear)
            if error & PF_WRITE:
                allowed = area.prot & PROT_WRITE
            elif error & PF_FETCH:
                allowed = area.prot & PROT_EXEC
            else:
                allowed = area.prot
            if not allowed:
                return Fault(SIGSEGV, SEGV_ACCERR, linear)
            return self._fill(area, linear, bool(error & PF_WRITE))

    def _fill(self, area: Area, linear: int, is_write: bool) -> Fault | None:
        start = max(area.start, linear & -TABLE_SPAN)
        end = min(area.end, (linear & -TABLE_SPAN) + TABLE_SPAN)
        if area.file_end:
            if linear >= area.file_end & -PAGE:
                # Past the end of the file when it was mapped; it may have grown since.
                start, end = linear & -PAGE, (linear & -PAGE) + PAGE
                if not self._is_there(start):
                    return Fault(SIGBUS, BUS_ADRERR, linear)
            else:
                end = min(end, area.file_end & -PAGE)
        prot = area.prot
        if self.journal is not None and prot & PROT_WRITE and not area.shared:
            if is_write:
                start, end = linear & -PAGE, (linear & -PAGE) + PAGE
                self.journal.touch(start, PAGE)
            else:
                prot &= ~PROT_WRITE
        flags = page_flags(prot)
        physical = self.machine.guest_physical(start)
        self.machine.tables.map_run(start, physical, (end - start) // PAGE, flags)
        return None

    def _is_there(self, linear: int) -> bool:
        buffer = ctypes.create_string_buffer(1)
        return self._transfer(_READV, ctypes.addressof(buffer), linear, 1) == 1

    def is_lost(self, linear: int) -> bool:
        """Whether the address lies in a file mapping, behind what the file still has."""
        with self.lock:
            area = self.areas.find(linear)
            return bool(area and area.file and area.prot and not self._is_there(linear))

    def lose(self, linear: int) -> bool:
        """A file no longer has this page, and something else has taken its place; False if there
        is no such file."""
        page = linear & -PAGE
        with self.lock:
            area = self.areas.find(linear)
            if area is None or area.file is None:
                return False
            self.machine.tables.clear(page, page + PAGE)
            self.world.flush()
            flags = _PRIVATE_ANONYMOUS_FIXED
            self.calls(_MMAP, self.host(page), PAGE, 0, flags, (1 << 64) - 1, 0)
            self.machine.forget_code(page, page + PAGE)
            self.areas.add(replace(area, file_end=max(page, area.start + 1)))
            return True

    def is_filled(self, linear: int, error: int) -> bool:
        """Whether the tables already allow the access: the processor only remembered wrongly."""
        entry = self.machine.tables.entry(linear)
        if linear >= layout.USER_END or not entry & PTE_P:
            return False
        if error & PF_WRITE and not entry & PTE_W:
            return False
        return not (error & PF_FETCH and entry & PTE_NX)


def page_flags(prot: int) -> int:
    """Page-table flags for an area's rights; x86 cannot write or execute without reading."""
    if not prot & (PROT_READ | PROT_WRITE | PROT_EXEC):
        return 0
    return user_flags(bool(prot & PROT_WRITE), bool(prot & PROT_EXEC))


def host_prot(prot: int) -> int:
    """The rights of the host's mapping: the VMM reads what the guest executes."""
    rights = prot & (PROT_READ | PROT_WRITE)
    return rights | PROT_READ if prot & (PROT_EXEC | PROT_WRITE) else rights
