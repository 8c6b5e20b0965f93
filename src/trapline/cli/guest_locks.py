"""The bus locks of a guest image: counted by instruction, and printed as a table.

For a traced program there is a whole report; an image has neither symbols nor processes here.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import NamedTuple

from trapline.processor import BusLock, Cause, Outcome

_SHOWN = 20
_SIGNALS = {
    Outcome.NONE: "silent",
    Outcome.DB: "#DB",
    Outcome.VM_EXIT: "bus-lock exit",
    Outcome.AC: "refused by #AC",
}


class Site(NamedTuple):
    """An instruction, and what its bus locks have in common."""

    rip: int
    cause: Cause
    size: int
    cpl: int
    outcome: Outcome


class GuestLocks:
    """An observer of the processor."""

    def __init__(self) -> None:
        self._counts: Counter[Site] = Counter()
        self._lock = threading.Lock()

    def bus_lock(self, lock: BusLock, outcome: Outcome) -> None:
        self._add(Site(lock.rip, lock.cause, lock.size, lock.cpl, outcome), 1)

    def bus_lock_total(
        self, rip: int, next_rip: int, cause: Cause, size: int, cpl: int, linear: int, count: int
    ) -> None:
        self._add(Site(rip, cause, size, cpl, Outcome.NONE), count)

    def undefined(self, rip: int, code: bytes, text: str) -> None:
        """The guest gets its #UD, and says what it thinks of it."""

    def _add(self, site: Site, count: int) -> None:
        with self._lock:
            self._counts[site] += count

    @property
    def total(self) -> int:
        """The bus locks taken; those that #AC prevented are none."""
        return sum(n for site, n in self._counts.items() if site.outcome is not Outcome.AC)

    def summary(self) -> str:
        """What there was, the busiest instruction first; nothing if there was nothing."""
        if not self._counts:
            return ""
        sites = self._counts.most_common()
        places = _plural(len({site.rip for site in self._counts}), "instruction")
        lines = [f"{_plural(self.total, 'bus lock')} at {places}"]
        for site, count in sites[:_SHOWN]:
            lines.append(
                f"  {count:>8}  {site.rip:#x}  {site.cause.value}, {_plural(site.size, 'byte')},"
                f" CPL {site.cpl}, {_SIGNALS[site.outcome]}"
            )
        if len(sites) > _SHOWN:
            lines.append(f"  and {len(sites) - _SHOWN} more lines")
        return "".join(f"{line}\n" for line in lines)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
