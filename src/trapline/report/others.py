"""What else a site's bus locks locked, and who else called: the first is never all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.text import Text

from trapline.report.summary import Frame, Site, Spot
from trapline.report.words import plain, plural

SHOWN = 8


def memory_rows(site: Site) -> Iterator[Text]:
    """What was locked, a line each with its count; one line if it was always the same."""
    groups = _grouped(site.spots, _memory)
    if not groups or (len(groups) == 1 and not groups[0][0]):
        return
    if len(groups) == 1 and not site.unplaced:
        yield Text(f"{_name(*groups[0])}")
        return
    for number, (name, spots) in enumerate(groups[:SHOWN]):
        first = ", the first" if not number else ""
        yield Text(f"{_name(name, spots)}: {_times(spots)}{first}")
    yield from _rest(groups[SHOWN:], "more place")
    if site.unplaced:
        yield Text(f"not told apart: {plural(site.unplaced, 'more time')}", "dim")


def caller_rows(site: Site, place: Callable[[Frame], Text]) -> Iterator[tuple[str, Text]]:
    """Who else called, by the frame in which it is another than the first's; and of how many
    bus locks the callers are not known."""
    others = [spot for spot in site.spots[1:] if spot.stack]
    groups: dict[str, tuple[Text, list[Spot]]] = {}
    for spot in others:
        frame = _difference(site.stack or [], spot.stack or [])
        if frame is not None:
            name = place(frame)
            groups.setdefault(name.plain, (name, []))[1].append(spot)
    ordered = sorted(groups.values(), key=lambda group: -_count(group[1]))
    for name, spots in ordered[:SHOWN]:
        yield "also by", name.append(f": {_times(spots)}")
    for text in _rest([(name.plain, spots) for name, spots in ordered[SHOWN:]], "more caller"):
        yield "", text
    unknown = site.unplaced + _count([spot for spot in site.spots if not spot.stack])
    if unknown and site.stack:
        yield "", Text(f"the callers of {plural(unknown, 'bus lock')} were not looked at", "dim")


def is_one_place(site: Site) -> bool:
    """Whether all the bus locks are known to have locked the same."""
    return not site.unplaced and len(_grouped(site.spots, _memory)) < 2


def _memory(spot: Spot) -> str:
    return plain(spot.place.text) if spot.place is not None else ""


def _grouped(spots: list[Spot], name: Callable[[Spot], str]) -> list[tuple[str, list[Spot]]]:
    """By name, the first's first, then the most frequent."""
    groups: dict[str, list[Spot]] = {}
    for spot in spots:
        groups.setdefault(name(spot), []).append(spot)
    first, *rest = groups.items() if groups else [("", [])]
    return [first, *sorted(rest, key=lambda group: -_count(group[1]))]


def _difference(first: list[Frame], other: list[Frame]) -> Frame | None:
    """The innermost frame of a call stack that the first one does not have there."""
    for at, frame in enumerate(other):
        if at >= len(first) or _code(first[at]) != _code(frame):
            return frame
    return None


def _code(frame: Frame) -> object:
    """What makes frames of two processes the same."""
    is_known = frame.where.module_offset is not None
    return (frame.where.module, frame.where.module_offset) if is_known else frame.rip


def _name(name: str, spots: list[Spot]) -> str:
    addresses = len({spot.linear for spot in spots})
    return (name or "unknown memory") + (f" ({addresses} addresses)" if addresses > 1 else "")


def _rest(groups: list[tuple[str, list[Spot]]], noun: str) -> Iterator[Text]:
    if groups:
        spots = [spot for _, members in groups for spot in members]
        yield Text(f"and {plural(len(groups), noun)}: {_times(spots)}", "dim")


def _times(spots: list[Spot]) -> str:
    return plural(_count(spots), "time")


def _count(spots: list[Spot]) -> int:
    return sum(spot.count for spot in spots)
