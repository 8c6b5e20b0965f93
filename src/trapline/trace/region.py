"""What a stopped guest thread can be asked, and the mappings of its address space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol


class Region(NamedTuple):
    """One mapping, as /proc/PID/maps shows it: the guest's own view of its address space."""

    start: int
    end: int
    offset: int  # of `start` in the file
    path: str | None  # None: anonymous
    name: str  # "[heap]", "[stack]", "[vdso]" or ""
    is_executable: bool
    is_shared: bool = False


class GuestThread(Protocol):
    """A guest thread stopped at an instruction boundary."""

    @property
    def tid(self) -> int:
        """The thread's number, as the guest sees it."""
        ...

    @property
    def name(self) -> str:
        """Linux's `comm`: at most 15 characters."""
        ...

    @property
    def bitness(self) -> int:
        """Of the code it runs: 16, 32 or 64."""
        ...

    def registers(self) -> Mapping[str, int]:
        """rax to r15, rip, rflags, fs_base, gs_base: as they are now, after the instruction."""
        ...

    def read(self, linear: int, size: int) -> bytes:
        """Guest memory; short, or empty, where there is none."""
        ...

    def region(self, linear: int) -> Region | None:
        """The mapping that holds an address, or None."""
        ...


class Locked(Protocol):
    """What a bus lock says of itself: the processor's BusLock, or the last of many."""

    @property
    def rip(self) -> int: ...
    @property
    def next_rip(self) -> int: ...
    @property
    def linear(self) -> int: ...
    @property
    def physical(self) -> int | None: ...
    @property
    def size(self) -> int: ...
    @property
    def cpl(self) -> int: ...
    @property
    def cause(self) -> str: ...


class LastLock(NamedTuple):
    """The last bus lock of a total that native code handed over."""

    rip: int
    next_rip: int
    linear: int
    size: int
    cpl: int
    cause: str
    physical: int | None = None
