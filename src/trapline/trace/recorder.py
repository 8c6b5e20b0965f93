"""Keeps what an observer sees: exact counts a site, the first event's circumstances, some events.

One a traced process.  A site is one instruction with one cause and one outcome.  Stacks are
unwound here, once a site, because they need the stopped thread's memory; names and lines are
looked up later, from the file.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trapline.trace.capture import Capture
from trapline.trace.file import Record, TraceWriter
from trapline.trace.operand import Disassemble
from trapline.trace.region import GuestThread, LastLock, Locked

if TYPE_CHECKING:  # the types only: reading a trace must not load a processor
    from trapline.processor import BusLock, Cause, Outcome

FLUSH_SECONDS = 0.1
EVENT_LIMIT = 1000
PLACE_LIMIT = 64  # of one site: what is locked, and from where it is called
CALLER_LIMIT = 4096  # bus locks of one site whose callers are told apart

NO_SIGNAL = "none"  # Outcome.NONE's value
_Key = tuple[int, int, int, str, str]  # rip, size, cpl, cause, outcome
_Place = tuple[int, int | None]  # linear, return address (0: unknown, None: not looked at)


@dataclass(slots=True)
class _Site:
    number: int
    count: int = 0
    last: float = 0.0
    threads: dict[int, int] = field(default_factory=dict)
    # How often at each place, and the place's number: 0 is the first's.
    places: dict[_Place, int] = field(default_factory=dict)
    numbers: dict[_Place, int] = field(default_factory=dict)
    called: int = 0  # how many were looked at for their caller


class Recorder:
    """Counts bus locks of one process and writes them to the trace."""

    def __init__(
        self,
        writer: TraceWriter,
        disassemble: Disassemble,
        *,
        event_limit: int = EVENT_LIMIT,
        started: float | None = None,
    ) -> None:
        self._writer = writer
        self._disassemble = disassemble
        self._held: dict[str, int] = {}
        # Entered while files are opened that the program's limit is not for.
        self.room: Callable[[], AbstractContextManager[None]] = nullcontext
        self._event_limit = event_limit
        self._started = time.monotonic() if started is None else started
        self._pid = 0
        self._image = 0
        self._program: list[str] = []
        self._executable = ""
        self._wake: threading.Event | None = None
        self._fresh()

    def _fresh(self) -> None:
        """Forget everything that belongs to one program in one process."""
        self._lock = threading.Lock()
        self._sites: dict[_Key, _Site] = {}
        self._changed: dict[int, _Site] = {}
        self._events: list[Record] = []
        self._events_kept = 0
        self._last_number = 0
        self._undefined: set[int] = set()
        self._capture = Capture(self._disassemble, self._held)
        self._capturing = threading.Lock()  # a mapping is written before what names it
        self._named: dict[int, str] = {}

    def start(self, pid: int, parent: int, program: list[str], executable: str) -> None:
        """The first process begins with this program; `executable` is its path on the host."""
        self._pid, self._program, self._executable = pid, program, executable
        self._say("start", parent=parent, program=program, executable=executable)

    def forked(self, pid: int, parent: int) -> None:
        """In a new child, before it runs: counts and sites begin afresh."""
        self._writer.forked()
        self._wake = None  # the flusher stayed in the parent
        self._fresh()
        self._pid = pid
        self._say("start", parent=parent, program=self._program, executable=self._executable)

    def executed(self, program: list[str], executable: str) -> None:
        """The process replaced its program (execve)."""
        self.flush()
        self._held = {}
        self._fresh()
        self._image += 1
        self._program, self._executable = program, executable
        self._say("exec", program=program, executable=executable)

    def hold(self, files: Mapping[str, int]) -> None:
        """Read these files by their descriptors, from before the process changes its rights or
        its root until it executes another program."""
        self._held.update(files)
        self._capture.use_held()

    def thread_started(self, tid: int, stack_pointer: int) -> None:
        """A thread begins; the mapping its stack pointer lies in is its stack."""
        self._capture.stack_pointers[tid] = stack_pointer

    def thread_ended(self, tid: int) -> None:
        """A thread is gone; its stack may be reused."""
        self._capture.stack_pointers.pop(tid, None)

    def unmapped(self, start: int, end: int) -> None:
        """Code may be replaced at [start, end): what happens there from now on is another site."""
        if not self._sites:
            return
        self.flush()
        with self._lock:
            for key in [key for key in self._sites if start <= key[0] < end]:
                del self._sites[key]

    def exited(self, code: int | None, signal: int | None) -> None:
        """The process is about to end, with an exit code or by a signal."""
        self.flush()
        self._say("exit", code=code, signal=signal)

    def bus_lock(self, lock: Locked, outcome: Outcome, thread: GuestThread) -> None:
        """One bus lock, its thread stopped after the instruction."""
        key = (lock.rip, lock.size, lock.cpl, lock.cause, outcome)
        now = time.monotonic() - self._started
        site, is_new = self._count(key, 1, thread.tid, now)
        place = (lock.linear, self._caller(site, lock, thread))
        is_new_place = self._count_place(site, place)
        if is_new:
            self._write_site(site, lock, key[-1], thread, now)
        elif is_new_place:
            self._write_place(site, place, lock, thread)
        if self._events_kept < self._event_limit:
            self._keep_event(site, lock.linear, thread.tid, now)

    def bus_lock_total(self, last: Locked, count: int, thread: GuestThread) -> None:
        """`count` bus locks of one instruction that signalled nothing; `last` is the last one."""
        key = (last.rip, last.size, last.cpl, last.cause, NO_SIGNAL)
        now = time.monotonic() - self._started
        site, is_new = self._count(key, count, thread.tid, now)
        if is_new:
            self._write_site(site, last, NO_SIGNAL, thread, now, is_current=False)
        # Where the last was is known, of the others not even that.
        place = (last.linear, None)
        is_elsewhere = all(linear != last.linear for linear, _ in list(site.places))
        if is_elsewhere and self._count_place(site, place) and not is_new:
            self._write_place(site, place, last, thread)

    def undefined(self, rip: int, code: bytes, text: str, thread: GuestThread) -> None:
        """An instruction Trapline does not implement raised #UD; recorded once an address."""
        with self._lock:
            if rip in self._undefined:
                return
            self._undefined.add(rip)
        with self._capturing, self.room():
            maps: list[Record] = []
            number = self._capture.region_number(thread.region(rip), maps, thread)
            self._writer.write(*map(self._stamped, maps))
        self._say("undefined", tid=thread.tid, rip=rip, code=code.hex(), text=text, map=number)

    def flush(self) -> None:
        """Write the counts and events that have not been written yet."""
        with self._lock:
            changed, events = self._changed, self._events
            self._changed, self._events = {}, []
            counts = [
                {
                    "site": site.number,
                    "count": site.count,
                    "last": round(site.last, 6),
                    "threads": {str(tid): count for tid, count in site.threads.items()},
                    "places": [[site.numbers[at], count] for at, count in site.places.items()],
                }
                for site in changed.values()
            ]
        if counts:
            events.append({"record": "counts", "counts": counts})
        if events:
            self._writer.write(*map(self._stamped, events))

    def _count(self, key: _Key, count: int, tid: int, now: float) -> tuple[_Site, bool]:
        with self._lock:
            site = self._sites.get(key)
            is_new = site is None
            if site is None:
                self._last_number += 1
                site = self._sites[key] = _Site(self._last_number)
            site.count += count
            site.last = now
            site.threads[tid] = site.threads.get(tid, 0) + count
            is_first_change = not self._changed
            self._changed[site.number] = site
        if is_first_change:
            self._ask_to_flush()
        return site, is_new

    def _count_place(self, site: _Site, place: _Place) -> bool:
        """One bus lock here; True if the place is to be described.  Bounded: the rest are the
        site's, and nowhere's."""
        with self._lock:
            is_new = place not in site.places
            if is_new and len(site.places) >= PLACE_LIMIT:
                return False
            site.places[place] = site.places.get(place, 0) + 1
            site.numbers.setdefault(place, len(site.numbers))
        return is_new

    def _caller(self, site: _Site, lock: Locked, thread: GuestThread) -> int | None:
        if site.called >= CALLER_LIMIT:
            return None
        site.called += 1
        with self.room():
            return self._capture.caller(lock, thread)

    def _write_place(self, site: _Site, place: _Place, lock: Locked, thread: GuestThread) -> None:
        fields = {"site": site.number, "place": site.numbers[place], "linear": lock.linear}
        with self._capturing, self.room():
            captured, maps = self._capture.surroundings(lock, thread, place[1] is not None)
            records = [self._stamped(region) for region in maps]
            record = {"record": "place", "tid": thread.tid, **fields, **captured}
            self._writer.write(*records, self._stamped(record))

    def _keep_event(self, site: _Site, linear: int, tid: int, now: float) -> None:
        event = {"record": "event", "site": site.number, "tid": tid, "time": round(now, 6),
                 "linear": linear}  # fmt: skip
        with self._lock:
            self._events_kept += 1
            self._events.append(event)
            if self._events_kept == self._event_limit:
                self._events.append({"record": "event_limit", "limit": self._event_limit})

    def _write_site(
        self,
        site: _Site,
        lock: Locked,
        outcome: str,
        thread: GuestThread,
        now: float,
        is_current: bool = True,
    ) -> None:
        fields: dict[str, Any] = {
            "site": site.number,
            "tid": thread.tid,
            "time": round(now, 6),
            "rip": lock.rip,
            "next_rip": lock.next_rip,
            "linear": lock.linear,
            "physical": lock.physical,
            "size": lock.size,
            "cpl": lock.cpl,
            "cause": lock.cause,
            "outcome": outcome,
        }
        with self._capturing, self.room():
            captured, maps = self._capture.circumstances(lock, thread, is_current)
            records = [self._stamped(region) for region in maps]
            records += self._thread_named(thread)
            self._writer.write(*records, self._stamped({"record": "site", **fields, **captured}))

    def _thread_named(self, thread: GuestThread) -> list[Record]:
        if self._named.get(thread.tid) == thread.name:
            return []
        self._named[thread.tid] = thread.name
        return [self._stamped({"record": "thread", "tid": thread.tid, "name": thread.name})]

    def _say(self, record: str, **fields: Any) -> None:
        now = round(time.monotonic() - self._started, 6)
        self._writer.write(self._stamped({"record": record, "time": now, **fields}))

    def _stamped(self, record: Mapping[str, Any]) -> Record:
        return {**record, "pid": self._pid, "image": self._image}

    def _ask_to_flush(self) -> None:
        """Have a helper thread flush soon, so that a killed process loses a tenth of a second."""
        if self._wake is None:
            self._wake = threading.Event()
            flusher = threading.Thread(target=self._flush_soon, args=(self._wake,), daemon=True)
            # Signals are for threads of the program; this one inherits that it gets none.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            flusher.start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals() - before)
        self._wake.set()

    def _flush_soon(self, wake: threading.Event) -> None:
        while wake is self._wake:
            wake.wait()
            wake.clear()
            time.sleep(FLUSH_SECONDS)
            if wake is self._wake:
                self.flush()


class ThreadObserver:
    """The recorder as the processor's observer, for the thread of one processor."""

    def __init__(self, recorder: Recorder, thread: GuestThread) -> None:
        self._recorder, self._thread = recorder, thread

    def bus_lock(self, lock: BusLock, outcome: Outcome) -> None:
        """One bus lock and what it caused."""
        self._recorder.bus_lock(lock, outcome, self._thread)

    def bus_lock_total(
        self, rip: int, next_rip: int, cause: Cause, size: int, cpl: int, linear: int, count: int
    ) -> None:
        """Further bus locks of one instruction, counted by native code."""
        last = LastLock(rip, next_rip, linear, size, cpl, cause)
        self._recorder.bus_lock_total(last, count, self._thread)

    def undefined(self, rip: int, code: bytes, text: str) -> None:
        """An instruction Trapline does not implement."""
        self._recorder.undefined(rip, code, text, self._thread)
