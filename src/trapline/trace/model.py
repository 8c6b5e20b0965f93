"""A trace as one sees it afterwards: processes, their mappings, their sites with exact counts.

Built from the records of a trace file; sites are still one process's, and addresses still raw.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trapline.trace.file import Record, TraceFile
from trapline.trace.region import Region
from trapline.trace.schema import is_sound


@dataclass(slots=True)
class Mapped:
    """A mapping a site speaks of, the build-id the file had then, and its load bias."""

    region: Region
    build_id: str | None
    bias: int | None


@dataclass(slots=True)
class TracedProgram:
    """One program in one process: what exec replaces."""

    pid: int
    program: list[str]
    executable: str
    maps: dict[int, Mapped] = field(default_factory=dict)


class FrameBases(NamedTuple):
    """What a frame's local variables are counted from, as far as it is known."""

    cfa: int | None = None
    rsp: int | None = None
    rbp: int | None = None


@dataclass(slots=True)
class TracedFrame:
    """One frame of a call stack; `lookup` lies in the call where `rip` is a return address."""

    rip: int
    lookup: int
    mapped: Mapped | None
    bases: FrameBases = FrameBases()


@dataclass(slots=True)
class TracedSite:
    """One instruction that took bus locks in one process, as the first of them was.

    `places` has the others that were told from it, by what they locked or who called, each as
    if it were a site: with a `count`.  `first_count` is the first place's own; all these may be
    fewer than `count`, of which the rest is not known.
    """

    owner: TracedProgram
    fields: Record
    mapped: Mapped | None
    memory_map: Mapped | None
    below_map: Mapped | None  # the file mapping right below the data
    stack: list[TracedFrame]
    count: int = 0
    last: float = 0.0
    threads: dict[int, int] = field(default_factory=dict)
    places: list[TracedSite] = field(default_factory=list)
    first_count: int = 1

    @property
    def rip(self) -> int:
        """The culprit's address."""
        return int(self.fields["rip"])


@dataclass(slots=True)
class Undefined:
    """An instruction Trapline does not implement, which raised #UD in the guest."""

    owner: TracedProgram
    rip: int
    code: str
    text: str
    mapped: Mapped | None


@dataclass(slots=True)
class Trace:
    """Everything a trace file says."""

    header: Record
    program: list[str] = field(default_factory=list)
    exit_status: int | None = None
    exit_signal: int | None = None
    pids: list[int] = field(default_factory=list)
    ended: dict[int, Record] = field(default_factory=dict)
    sites: list[TracedSite] = field(default_factory=list)
    undefined: list[Undefined] = field(default_factory=list)
    thread_names: dict[int, str] = field(default_factory=dict)
    events: list[Record] = field(default_factory=list)
    event_limit: int | None = None  # reached: single events were kept up to this many a process
    is_complete: bool = False
    damaged_lines: int = 0

    @property
    def total(self) -> int:
        """All bus locks of all processes."""
        return sum(site.count for site in self.sites)


def read_trace(path: str) -> Trace:
    """The trace in a file, as far as it was written."""
    source = TraceFile(path)
    trace = Trace(source.header)
    reader = _Reader(trace)
    for record in source.records():
        handle = getattr(reader, f"on_{record.get('record')}", None)
        if not is_sound(record):
            trace.damaged_lines += 1
        elif handle is not None:  # records of later versions are passed over
            handle(record)
    trace.damaged_lines += source.damaged_lines
    reader.finish()
    return trace


class _Reader:
    """One method a kind of record."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._programs: dict[tuple[int, int], TracedProgram] = {}
        self._sites: dict[tuple[int, int, int], TracedSite] = {}
        self._counts: dict[tuple[int, int, int], Record] = {}
        self._records: list[tuple[TracedProgram, Record]] = []

    def on_start(self, record: Record) -> None:
        self._begin(record)
        self._trace.pids.append(record["pid"])
        if len(self._trace.pids) == 1:
            self._trace.program = list(record["program"])

    def on_exec(self, record: Record) -> None:
        self._begin(record)

    def on_map(self, record: Record) -> None:
        region = Region(
            record["start"], record["end"], record["offset"], record["path"], record["name"], False
        )
        self._owner(record).maps[record["map"]] = Mapped(
            region, record.get("build_id"), record.get("bias")
        )

    def on_thread(self, record: Record) -> None:
        self._trace.thread_names[record["tid"]] = record["name"]

    def on_site(self, record: Record) -> None:
        self._records.append((self._owner(record), record))

    def on_place(self, record: Record) -> None:
        self._records.append((self._owner(record), record))

    def _site(self, owner: TracedProgram, record: Record) -> None:
        self._sites[_key(record, record["site"])] = self._as_site(owner, record)

    def _place(self, owner: TracedProgram, record: Record) -> None:
        """A further place of a site: what it does not say is as the first's."""
        key = _key(record, record["site"])
        site, counted = self._sites.get(key), self._counts.get(key)
        # One whose count was lost with its writer was met at least once.
        places: dict[int, int] = dict(counted.get("places", [])) if counted else {}
        count = places.get(record["place"], 1)
        if site is None or not count:
            return
        shared = {
            name: known
            for name, known in site.fields.items()
            if name not in ("stack", "memory", "operand", "registers", "problems")
        }
        place = self._as_site(owner, {**shared, **record})
        place.count = count
        site.places.append(place)

    def _as_site(self, owner: TracedProgram, record: Record) -> TracedSite:
        memory: dict[str, Any] = record.get("memory") or {}
        stack = [
            TracedFrame(
                frame["rip"],
                frame["lookup"],
                self._mapped(owner, frame["map"]),
                FrameBases(frame.get("cfa"), frame.get("rsp"), frame.get("rbp")),
            )
            for frame in record.get("stack") or []
        ]
        return TracedSite(
            owner,
            record,
            self._mapped(owner, record.get("map")),
            self._mapped(owner, memory.get("map")),
            self._mapped(owner, memory.get("before")),
            stack,
        )

    def on_counts(self, record: Record) -> None:
        for counted in record["counts"]:
            self._counts[_key(record, counted["site"])] = counted

    def on_event(self, record: Record) -> None:
        self._trace.events.append(record)

    def on_event_limit(self, record: Record) -> None:
        self._trace.event_limit = record["limit"]

    def on_undefined(self, record: Record) -> None:
        self._records.append((self._owner(record), record))

    def _undefined(self, owner: TracedProgram, record: Record) -> None:
        self._trace.undefined.append(
            Undefined(
                owner,
                record["rip"],
                record["code"],
                record["text"],
                self._mapped(owner, record.get("map")),
            )
        )

    def on_exit(self, record: Record) -> None:
        self._trace.ended[record["pid"]] = record

    def on_end(self, record: Record) -> None:
        self._trace.is_complete = True
        self._trace.exit_status = record["exit_status"]
        self._trace.exit_signal = record.get("signal")

    def finish(self) -> None:
        """Join sites with mappings and counts, which may stand before or after them: threads
        write as they come."""
        # Places last: they add to their sites.
        for kind, join in (("undefined", self._undefined), ("site", self._site),
                           ("place", self._place)):  # fmt: skip
            for owner, record in self._records:
                if record["record"] == kind:
                    join(owner, record)
        for key, site in self._sites.items():
            counted = self._counts.get(key)
            # A site whose counts were lost with its writer happened at least once.
            site.count = counted["count"] if counted else 1
            places: dict[int, int] = dict(counted.get("places", [])) if counted else {}
            site.first_count = places.get(0, min(site.count, 1))
            site.last = counted["last"] if counted else site.fields["time"]
            threads = counted["threads"] if counted else {str(site.fields["tid"]): 1}
            site.threads = {int(tid): count for tid, count in threads.items()}
            self._trace.sites.append(site)
        if not self._trace.is_complete and self._trace.pids:
            first = self._trace.ended.get(self._trace.pids[0])
            if first is not None:
                self._trace.exit_signal = first["signal"]
                signal = first["signal"]
                self._trace.exit_status = first["code"] if signal is None else 128 + signal

    def _begin(self, record: Record) -> None:
        key = (record["pid"], record["image"])
        self._programs[key] = TracedProgram(
            record["pid"], list(record["program"]), record["executable"]
        )

    def _owner(self, record: Record) -> TracedProgram:
        """The program a record belongs to, also where its start was lost."""
        key = (record["pid"], record["image"])
        if key not in self._programs:
            self._programs[key] = TracedProgram(record["pid"], [], "")
        return self._programs[key]

    def _mapped(self, owner: TracedProgram, number: int | None) -> Mapped | None:
        return owner.maps.get(number) if number is not None else None


def _key(record: Record, site: int) -> tuple[int, int, int]:
    return record["pid"], record["image"], site
