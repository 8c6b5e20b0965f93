"""The guest's memory areas: which linear addresses are mapped, how, and from what file.

Pure bookkeeping, as /proc/PID/maps shows it; no memory is touched here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

PROT_READ = 1
PROT_WRITE = 2
PROT_EXEC = 4
PAGE = 4096


@dataclass(frozen=True, slots=True)
class MappedFile:
    """The file behind an area, as stat and the name it was opened under tell."""

    path: str
    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class Area:
    """One mapping: [start, end), whole pages."""

    start: int
    end: int
    prot: int
    shared: bool = False
    file: MappedFile | None = None
    offset: int = 0
    name: str = ""  # "[heap]", "[stack]", or what the program called an anonymous one
    file_end: int = 0  # linear address up to which the file had bytes; 0 = no limit

    @property
    def size(self) -> int:
        return self.end - self.start

    def part(self, start: int, end: int) -> Area:
        """The area cut down to [start, end), its file offset moved along."""
        if start == self.start and end == self.end:
            return self
        offset = self.offset + (start - self.start) if self.file else 0
        return replace(self, start=start, end=end, offset=offset)

    def continues(self, before: Area) -> bool:
        """Whether `before` and this are one mapping that was only cut."""
        return (
            before.end == self.start
            and before.prot == self.prot
            and before.shared == self.shared
            and before.file == self.file
            and before.name == self.name
            and before.file_end == self.file_end
            and not (self.shared and self.file is None)  # two of these are two objects
            and (self.file is None or before.offset + before.size == self.offset)
        )


class AreaMap:
    """Areas in order of address, never overlapping.

    Changes are for one thread at a time; a question finds the map as it was before or after one.
    """

    def __init__(self) -> None:
        self._index: tuple[list[int], list[Area]] = ([], [])

    def __iter__(self) -> Iterator[Area]:
        return iter(self._index[1])

    def __len__(self) -> int:
        return len(self._index[1])

    def find(self, linear: int) -> Area | None:
        """The area that holds this address."""
        starts, areas = self._index
        index = bisect_right(starts, linear) - 1
        if index < 0:
            return None
        area = areas[index]
        return area if linear < area.end else None

    def between(self, start: int, end: int) -> list[Area]:
        """The parts of areas that lie in [start, end), in order."""
        starts, areas = self._index
        first, last = _span(starts, areas, start, end)
        return [area.part(max(area.start, start), min(area.end, end)) for area in areas[first:last]]

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) where nothing is mapped."""
        edges = [start]
        for area in self.between(start, end):
            edges += [area.start, area.end]
        edges.append(end)
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]

    def covers(self, start: int, end: int) -> bool:
        return not self.gaps(start, end)

    def find_gap(self, size: int, low: int, high: int) -> int | None:
        """The highest place in [low, high) where `size` bytes are free."""
        for start, end in reversed(self.gaps(low, high)):
            if end - start >= size:
                return end - size
        return None

    def remove(self, start: int, end: int) -> list[Area]:
        """Forget [start, end); what was there is returned."""
        removed = self.between(start, end)
        if removed:
            self._set(self._without(start, end))
        return removed

    def add(self, area: Area) -> None:
        """Put an area in, in place of whatever was there."""
        areas = self._without(area.start, area.end)
        index = bisect_left(areas, area.start, key=_start)
        first, last, merged = index, index, area
        if index and area.continues(areas[index - 1]):
            first -= 1
            merged = replace(areas[first], end=area.end)
        if index < len(areas) and areas[index].continues(area):
            merged = replace(merged, end=areas[index].end)
            last += 1
        areas[first:last] = [merged]
        self._set(areas)

    def protect(self, start: int, end: int, prot: int) -> None:
        """Give every area in [start, end) these rights."""
        for area in self.between(start, end):
            if area.prot != prot:
                self.add(replace(area, prot=prot))

    def check(self) -> None:
        """Raise unless the areas are whole pages, in order and apart."""
        starts, areas = self._index
        for before, after in pairwise(areas):
            if before.end > after.start:
                raise AssertionError(f"{before} overlaps {after}")
        for start, area in zip(starts, areas, strict=True):
            if start != area.start or (start | area.end) % PAGE or area.start >= area.end:
                raise AssertionError(f"{area} is malformed")

    def _without(self, start: int, end: int) -> list[Area]:
        """The areas but for [start, end)."""
        starts, areas = self._index
        first, last = _span(starts, areas, start, end)
        if first == last:
            return list(areas)
        kept = []
        head, tail = areas[first], areas[last - 1]
        if head.start < start:
            kept.append(head.part(head.start, start))
        if tail.end > end:
            kept.append(tail.part(end, tail.end))
        return [*areas[:first], *kept, *areas[last:]]

    def _set(self, areas: list[Area]) -> None:
        self._index = ([area.start for area in areas], areas)


def _start(area: Area) -> int:
    return area.start


def _span(starts: list[int], areas: list[Area], start: int, end: int) -> tuple[int, int]:
    first = bisect_right(starts, start) - 1
    if first < 0 or areas[first].end <= start:
        first += 1
    return first, max(first, bisect_left(starts, end))
