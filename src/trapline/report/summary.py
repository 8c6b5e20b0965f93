"""A trace, merged over its processes and with names for its addresses: what all reports print.

Reads program files for symbols and lines; never runs a guest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trapline.trace import Location, Locator, Place, Trace, TracedSite

CACHE_LINE = 64


@dataclass(slots=True)
class Frame:
    """One frame of a call stack; an inlined function shares the address of what it is in."""

    rip: int
    where: Location


@dataclass(slots=True)
class Spot:
    """What some of a site's bus locks locked, and from where they were called."""

    linear: int
    place: Place | None
    stack: list[Frame] | None
    count: int


@dataclass(slots=True)
class Site:
    """One instruction that took bus locks, over all processes that ran it."""

    first: TracedSite
    where: Location
    place: Place | None
    stack: list[Frame] | None
    count: int = 0
    threads: dict[int, int] = field(default_factory=dict)
    pids: list[int] = field(default_factory=list)
    first_time: float = 0.0
    last_time: float = 0.0
    members: list[TracedSite] = field(default_factory=list)
    spots: list[Spot] = field(default_factory=list)  # the first's first

    @property
    def unplaced(self) -> int:
        """How many bus locks nothing but the instruction is known of."""
        return max(self.count - sum(spot.count for spot in self.spots), 0)

    def __getitem__(self, name: str) -> Any:
        """A field of the first event, None where the trace has none."""
        return self.first.fields.get(name)

    @property
    def split(self) -> tuple[int, int]:
        """How many bytes fall on the first cache line, and how many on the second."""
        first = min(self["size"], CACHE_LINE - self["linear"] % CACHE_LINE)
        return first, self["size"] - first


@dataclass(slots=True)
class Missing:
    """An instruction that was answered with #UD, and where it stood.

    It has a `text` if Trapline lacks it, and none if it is illegal on every processor: LOCK
    before what has no memory operand to lock (SDM 2A, "LOCK"), or an encoding of nothing.
    """

    rip: int
    code: str
    text: str
    where: Location


@dataclass(slots=True)
class Summary:
    """A whole trace, ready to print."""

    trace: Trace
    sites: list[Site]
    missing: list[Missing]
    illegal: list[Missing]
    notes: list[str]

    @property
    def total(self) -> int:
        """All bus locks."""
        return self.trace.total


def summarize(trace: Trace, locator: Locator | None = None) -> Summary:
    """Sites merged over processes, the most frequent first."""
    locator = locator or Locator()
    merged: dict[tuple[Any, ...], Site] = {}
    for traced in sorted(trace.sites, key=lambda site: float(site.fields["time"])):
        where = locator.locate(traced.rip, traced.mapped)[0]
        site = merged.setdefault(_key(traced, where), Site(traced, where, None, None))
        _add(site, traced)
    for site in merged.values():
        site.place = locator.describe_memory(site.first)
        site.stack = _stack(site.first, locator)
        site.spots = list(_spots(site, locator))
    sites = sorted(merged.values(), key=lambda site: (-site.count, site.first_time))
    missing = [
        Missing(one.rip, one.code, one.text, locator.locate(one.rip, one.mapped)[0])
        for one in trace.undefined
    ]
    lacking = [one for one in missing if one.text]
    illegal = [one for one in missing if not one.text]
    return Summary(trace, sites, lacking, illegal, _notes(trace, locator))


def _key(traced: TracedSite, where: Location) -> tuple[Any, ...]:
    """What makes two processes' sites the same: the code, wherever it was loaded."""
    fields = traced.fields
    kind = tuple(fields[name] for name in ("size", "cpl", "cause", "outcome"))
    if where.module_offset is not None:
        build = traced.mapped.build_id if traced.mapped is not None else None
        return where.module, where.module_offset, build, *kind
    return None, traced.rip, fields.get("code"), *kind


def _add(site: Site, traced: TracedSite) -> None:
    started: float = traced.fields["time"]
    site.first_time = min(site.first_time, started) if site.count else started
    site.last_time = max(site.last_time, traced.last)
    site.count += traced.count
    site.members.append(traced)
    for tid, count in traced.threads.items():
        site.threads[tid] = site.threads.get(tid, 0) + count
    if traced.owner.pid not in site.pids:
        site.pids.append(traced.owner.pid)


def _spots(site: Site, locator: Locator) -> Iterator[Spot]:
    """The first bus lock's data and callers, then what else was seen, in order of its coming."""
    for member in site.members:
        counted = [(member, member.first_count), *((one, one.count) for one in member.places)]
        for traced, count in counted:
            linear: int = traced.fields["linear"]
            yield Spot(linear, locator.describe_memory(traced), _stack(traced, locator), count)


def _stack(traced: TracedSite, locator: Locator) -> list[Frame] | None:
    """The call stack from the culprit outwards, inlined calls included."""
    if "stack" not in traced.fields:
        return None
    frames = []
    for frame in traced.stack:
        for where in locator.locate(frame.lookup, frame.mapped):
            if where.module_offset is not None:  # of the frame, though the call gave the line
                offset = where.module_offset + frame.rip - frame.lookup
                where = where._replace(module_offset=offset)
            frames.append(Frame(frame.rip, where))
    return frames


def _notes(trace: Trace, locator: Locator) -> list[str]:
    """What a reader must know to trust the rest, one sentence each."""
    notes = []
    if trace.event_limit is not None:
        notes.append(
            f"Of single events, the first {trace.event_limit:,} of each process were kept;"
            " counts are exact."
        )
    if not trace.is_complete:
        notes.append("The trace has no end: the program still runs, or Trapline was stopped.")
    unended = [pid for pid in trace.pids[1:] if pid not in trace.ended]
    if trace.is_complete and unended:
        shown = ", ".join(map(str, unended[:5])) + ("..." if len(unended) > 5 else "")
        notes.append(f"Killed, or still running when the program ended: process {shown}.")
    if trace.damaged_lines:
        count, one = trace.damaged_lines, trace.damaged_lines == 1
        lines = "damaged line of the trace was" if one else "damaged lines of the trace were"
        notes.append(f"{count:,} {lines} passed over.")
    for path in sorted(locator.changed):
        notes.append(f"{path} has changed since the trace, so it gives no names or lines.")
    problems = {p for site in trace.sites for p in site.fields.get("problems", [])}
    notes += [f"Not everything could be recorded: {problem}." for problem in sorted(problems)]
    return notes
