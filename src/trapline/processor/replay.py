"""One instruction of a processor, done by somebody else in its place: what a hypervisor's emulator
is made of.

The same descriptions as ever, replayed on a copy of the processor's registers; memory is reached by
guest-physical address, and everything that can be intercepted is.  Nothing here knows who asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Final, Protocol

from trapline.arch.paging import PTE_BASE
from trapline.processor import boundary, exceptions
from trapline.processor.core import Core
from trapline.processor.interp import execute
from trapline.processor.memory import FETCH, READ, WRITE, Bus, Memory
from trapline.processor.memory.frames import Frames
from trapline.processor.memory.page import Frame
from trapline.processor.memory.types import UC, WB
from trapline.processor.state import BOUNCE_OFFSET, INDEX, XMM_OFFSET, State

if TYPE_CHECKING:
    from trapline.processor.decode import Decoded
    from trapline.processor.guest import Guest

_EVERYTHING: Final = READ | WRITE | FETCH
_ENGINE: Final = (
    *("attention", "exit_reason", "exit_rip", "exit_linear", "exit_size", "exit_detail"),
    *("exit_record", "next_record", "bus_lock_seen", "bus_lock_rip", "bus_lock_next_rip"),
    *("bus_lock_linear", "bus_lock_size", "bus_lock_cause", "bus_lock_count", "bus_lock_signals"),
    *("bus_lock_counted", "bus_lock_table", "running", "mov_dr_exits", "io_exits", "lines"),
    *("tlb", "tlb_user", "tlb_supervisor", "tlb_supervisor_ac", "bus", "instructions", "in_place"),
    *("jump_cache", "jump_cache_user", "jump_cache_supervisor"),
    *("scratch0", "scratch1", "scratch2", "scratch3"),
)
"""Slots that are not the guest's: what native code tells and is told."""
_ELSEWHERE: Final = ("cr8", "apic_base")
"""Slots that intercepts and devices change where they are: an APIC's task priority is CR8."""
_TRANSLATION: Final = tuple(INDEX[name] for name in ("cr0", "cr3", "cr4", "efer"))
_DR7: Final = INDEX["dr7"]


def _guest_slots() -> Iterator[slice]:
    """What is copied of the register file, in as few pieces as it has."""
    skipped = {INDEX[name] for name in _ENGINE + _ELSEWHERE}
    kept = (slot for slot in range(len(INDEX)) if slot not in skipped)
    for _, run in groupby(enumerate(kept), lambda pair: pair[1] - pair[0]):
        slots = [slot for _, slot in run]
        yield slice(slots[0], slots[-1] + 1)
    yield slice(XMM_OFFSET >> 3, BOUNCE_OFFSET >> 3)


_SLOTS: Final = tuple(_guest_slots())


class NotMemory(Exception):  # a way out, as Leave is
    """Instruction bytes, or an entry of the guest's page tables, where there is no memory."""


class GuestPhysical(Bus, Protocol):
    """The bus of a replayed instruction: guest-physical addresses."""

    @property
    def generation(self) -> int:
        """Another number once memory that was there is no longer."""

    def is_read_only(self, physical: int) -> bool:
        """Whether a page of memory must not be written: writes go to `write_device`, and reads
        that belong to one access with a write to `read_device`."""


class _Frames(Frames):
    """Guest-physical pages straight from the bus: memory is write-back, anything else not.
    Only memory is kept: where there is none, some may appear at any time."""

    def __init__(self, core: Core, bus: GuestPhysical) -> None:
        super().__init__(core)
        self._bus = bus

    def frame(self, physical: int, access: int, linear: int | None, is_walk: bool) -> Frame:
        page = physical & PTE_BASE
        host = self._bus.host(page)
        read_only = host is not None and self._bus.is_read_only(page)
        if host is None or (read_only and access & WRITE):
            if is_walk or access & FETCH:
                raise NotMemory
            return Frame(0, page, READ | WRITE, UC if host is None else WB, False)
        frame = Frame(host, page, READ | FETCH if read_only else _EVERYTHING, WB, False)
        self.known[page >> 12] = frame
        return frame


class Replayer(Core):
    """Another processor's stand-in.  `load` copies its registers, `execute` and `finish` do one
    instruction on the copy, and `store` makes it count; without `store` nothing has happened
    but to memory."""

    def __init__(self, core: Core, bus: GuestPhysical, guest: Guest) -> None:
        # Not Core's: it never runs beside the others, so it joins no cluster.
        self._core = core
        self.state = State()
        self.model, self.apic_id = core.model, core.apic_id
        self.bus: GuestPhysical = bus
        self._generation = bus.generation
        self.guest, self.observer = None, core.observer
        self.cluster, self.msrs, self.engine = core.cluster, core.msrs, None
        self.memory = Memory(self)
        self.guest = guest
        self.memory.walker.frames = _Frames(self, bus)
        self.memory.tlb.code = core.cluster.code_pages
        self.memory.exclusive = lambda: core.cluster.exclusive(core)
        self.interrupt_lines = boundary.InterruptLines(self.state)
        self.instruction = None
        self._decoded = {}

    def load(self) -> None:
        """Take the processor's registers, and translate everything anew."""
        self.memory.flush()
        self.reload()

    def reload(self) -> None:
        """Take the processor's registers, for another try or another iteration; translate anew
        what may have been translated to memory that is gone."""
        if self._generation != self.bus.generation:
            self._generation = self.bus.generation
            self.memory.walker.frames.forget()
            self.memory.flush()
        own, other, memory = self.state.q, self._core.state.q, self.memory
        for slots in _SLOTS:
            own[slots] = other[slots]
        self.observer = self._core.observer
        walker, its = memory.walker, self._core.memory.walker
        walker.pdptes, walker.pkru = its.pdptes, its.pkru
        memory.mode_changed()
        memory.breakpoints_changed()
        memory.privilege_changed()

    def begin(self) -> None:
        """An instruction is about to be done."""
        boundary.begin(self)

    def execute(self, instruction: Decoded) -> bool:
        """Do it, or one iteration of it; False: a REP instruction has iterations left."""
        self.instruction = instruction
        done = execute(self, instruction, 1)
        if not done:
            self.memory.notes.is_unfinished = True
        return done

    def finish(self) -> None:
        """The boundary after it: what it causes is in `state.pending_debug`, a bus lock has been
        observed."""
        boundary.after(self)

    def deliver(self, vector: int, error_code: int | None, *, kind: int, length: int) -> None:
        """An event through the guest's IDT, instead of an instruction."""
        exceptions.inject(self, vector, error_code, kind=kind, length=length)

    def store(self) -> None:
        """The processor goes on from here."""
        own, core = self.state.q, self._core
        other, memory, walker = core.state.q, core.memory, self.memory.walker
        moved = any(own[slot] != other[slot] for slot in _TRANSLATION)
        watches = own[_DR7] != other[_DR7]
        for slots in _SLOTS:
            other[slots] = own[slots]
        if walker.pkru != memory.walker.pkru:
            memory.walker.pkru = walker.pkru
            memory.flush()
        if moved:
            memory.walker.pdptes = walker.pdptes
            memory.mode_changed()
        if watches:
            memory.breakpoints_changed()
        memory.privilege_changed()
