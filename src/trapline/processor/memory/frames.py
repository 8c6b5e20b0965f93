"""Physical pages to host pages: directly through the bus, or nested while a guest runs.

The walk of the EPT (SDM 3C, "The Extended Page Table Mechanism") with its violations,
misconfigurations, accessed and dirty flags; AMD's is in `npt`.  Nothing here knows linear
addresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.paging import (
    EPT_ACCESSED,
    EPT_DIRTY,
    EPT_IGNORE_PAT,
    EPT_LARGE,
    PTE_BASE,
)
from trapline.processor.guest import NESTED_NPT
from trapline.processor.memory.host import QUADS, change
from trapline.processor.memory.npt import nested_frame
from trapline.processor.memory.page import READ, WRITE, Frame
from trapline.processor.memory.types import UC

if TYPE_CHECKING:
    from trapline.processor.core import Core

_EPTP_ACCESSED_DIRTY = 1 << 6
_EVERYTHING = 7
_VALID_TYPES = frozenset({0, 1, 4, 5, 6})
_NO_ACCESS = 0
_MOST_FRAMES = 1 << 18


class Frames:
    """The frames of one processor, cached by (guest-)physical page number in `known`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._pointer: int | None = None
        self._is_npt = False
        self.known: dict[int, Frame] = {}
        self.walk_access = READ  # how the walk of the guest's own tables counts

    def use(self, pointer: int | None, nested_format: int) -> None:
        """Translate through these nested tables from now on; None: physical addresses as they are.

        Nothing is kept for the pointer before: its tables may be gone when it comes again.
        """
        if pointer != self._pointer:
            self._pointer = pointer
            self.known.clear()
        self._is_npt = nested_format == NESTED_NPT
        # APM 2, "Nested versus Guest Page Faults": guest table walks are always user writes.
        has_flags = pointer is not None and (self._is_npt or pointer & _EPTP_ACCESSED_DIRTY)
        self.walk_access = READ | WRITE if has_flags else READ

    def forget(self) -> None:
        """Drop everything cached (INVEPT, or the memory map or an MTRR changed)."""
        self.known.clear()

    def frame(self, physical: int, access: int, linear: int | None, is_walk: bool) -> Frame:
        """The frame of a page, with the rights for `access`; leaves the guest if there are none.

        `linear` and `is_walk` are for the hypervisor: on whose behalf, and whether for an entry
        of the guest's own paging structures.
        """
        if self._pointer is None:
            bus, page = self._core.bus, physical & PTE_BASE
            memory_type = self._core.msrs.mtrrs.type_of(page)
            frame = Frame(bus.host(page) or 0, page, _EVERYTHING, memory_type, False)
        elif self._is_npt:
            frame = nested_frame(self._core, self._pointer, physical, access, linear, is_walk)
        else:
            frame = self._nested(self._pointer, physical, access, linear, is_walk)
        if len(self.known) >= _MOST_FRAMES:
            self.known.clear()
        self.known[physical >> 12] = frame
        return frame

    def _nested(
        self, pointer: int, physical: int, access: int, linear: int | None, is_walk: bool
    ) -> Frame:
        guest, host_of = self._core.guest, self._core.bus.host
        assert guest is not None
        shift = 12 + 9 * (pointer >> 3 & 7)
        table = pointer & PTE_BASE
        allowed = _EVERYTHING
        path: list[tuple[int, int]] = []
        if physical >> shift + 9:
            guest.ept_violation(physical, access, _NO_ACCESS, linear, is_walk)
        while True:
            host = host_of(table | (physical >> (shift - 3)) & 0xFF8)
            entry = QUADS[host >> 3] if host is not None else 0
            if not entry & _EVERYTHING:
                guest.ept_violation(physical, access, _NO_ACCESS, linear, is_walk)
            is_leaf = shift == 12 or (shift <= 30 and entry & EPT_LARGE)
            if _is_misconfigured(entry, shift, bool(is_leaf)):
                guest.ept_misconfiguration(physical)
            allowed &= entry
            path.append((host or 0, entry))
            if is_leaf:
                break
            table, shift = entry & PTE_BASE, shift - 9
        if access & ~allowed:
            guest.ept_violation(physical, access, allowed, linear, is_walk)
        rights = allowed
        if pointer & _EPTP_ACCESSED_DIRTY:
            rights = self._set_flags(path, access, allowed)
        final = (entry & PTE_BASE & -1 << shift) | physical & (1 << shift) - 1 & PTE_BASE
        memory_type = entry >> 3 & 7
        where = host_of(final)
        if where is None:  # the bus of a bare processor has no RAM there
            return Frame(0, final, rights, UC, True)
        return Frame(where, final, rights, memory_type, bool(entry & EPT_IGNORE_PAT))

    @staticmethod
    def _set_flags(path: list[tuple[int, int]], access: int, allowed: int) -> int:
        """Mark the entries of a walk accessed, the last dirty on a write; the rights kept."""
        for host, entry in path:
            wanted = EPT_ACCESSED
            if host == path[-1][0] and access & WRITE:
                wanted |= EPT_DIRTY
            if entry & wanted != wanted:
                change(host, 8, lambda old, wanted=wanted: old | wanted)  # type: ignore[misc]
        is_dirty = access & WRITE or path[-1][1] & EPT_DIRTY
        return allowed if is_dirty else allowed & ~WRITE


def _is_misconfigured(entry: int, shift: int, is_leaf: bool) -> bool:
    """SDM 3C, "EPT Misconfigurations"; execute-only entries are supported."""
    if entry & 3 == WRITE:
        return True
    if not is_leaf:
        return bool(entry & (0xF8 if shift >= 39 else 0x78))
    if entry >> 3 & 7 not in _VALID_TYPES:
        return True
    return bool(entry & PTE_BASE & (1 << shift) - 1)
