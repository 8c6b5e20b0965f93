"""Nested page tables in AMD's format: long-mode entries, every access a user's (APM 2, "Nested
Paging").

Four levels, the host having EFER.NXE set and the PAT that RESET leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.paging import (
    PAT_RESET,
    PTE_A,
    PTE_BASE,
    PTE_D,
    PTE_NX,
    PTE_P,
    PTE_PS,
    PTE_U,
    PTE_W,
    pat_index,
    pat_type,
)
from trapline.processor.memory.host import QUADS, change
from trapline.processor.memory.page import FETCH, READ, WRITE, Frame
from trapline.processor.memory.types import EFFECTIVE, UC

if TYPE_CHECKING:
    from trapline.processor.core import Core

_TOP = 39
_NOTHING = 0


def nested_frame(
    core: Core, root: int, physical: int, access: int, linear: int | None, is_walk: bool
) -> Frame:
    """The frame of a guest-physical page; leaves the guest where the tables do not allow it."""
    guest, host_of = core.guest, core.bus.host
    assert guest is not None
    if physical >> _TOP + 9:
        guest.ept_violation(physical, access, _NOTHING, linear, is_walk)
    table, shift = root & PTE_BASE, _TOP
    common, no_execute = PTE_W | PTE_U, 0
    path: list[tuple[int, int]] = []
    while True:
        host = host_of(table | (physical >> (shift - 3)) & 0xFF8)
        entry = QUADS[host >> 3] if host is not None else 0
        if not entry & PTE_P:
            guest.ept_violation(physical, access, _NOTHING, linear, is_walk)
        is_leaf = shift == 12 or bool(shift <= 30 and entry & PTE_PS)
        if _has_reserved(core, entry, shift, is_leaf):
            guest.ept_misconfiguration(physical)
        common &= entry
        no_execute |= entry & PTE_NX
        path.append((host or 0, entry))
        if is_leaf:
            break
        table, shift = entry & PTE_BASE, shift - 9
    rights = 0
    if common & PTE_U:
        rights = READ | (WRITE if common & PTE_W else 0) | (0 if no_execute else FETCH)
    if access & ~rights:
        guest.ept_violation(physical, access, rights, linear, is_walk)
    rights = _mark(path, access, rights)
    base = entry & PTE_BASE & -1 << shift
    final = base | physical & (1 << shift) - 1 & PTE_BASE
    where = host_of(final)
    if where is None:
        return Frame(0, final, rights, UC, True)
    # Guest and host types combine nearly as MTRR and PAT types do.
    own = pat_type(PAT_RESET, pat_index(entry, shift > 12))
    below = EFFECTIVE[8 * core.msrs.mtrrs.type_of(final) + own]
    return Frame(where, final, rights, below, False)


def _has_reserved(core: Core, entry: int, shift: int, is_leaf: bool) -> bool:
    reserved = PTE_BASE & -1 << core.model.physical_bits
    if shift == _TOP:
        reserved |= PTE_PS
    elif is_leaf and shift > 12:
        reserved |= (1 << shift) - 1 & ~0x1FFF  # above the PAT bit
    return bool(entry & reserved)


def _mark(path: list[tuple[int, int]], access: int, rights: int) -> int:
    """Accessed flags, the leaf's dirty flag on a write; the rights that need no more marking."""
    for host, entry in path:
        wanted = PTE_A
        if host == path[-1][0] and access & WRITE:
            wanted |= PTE_D
        if entry & wanted != wanted:
            change(host, 8, lambda old, wanted=wanted: old | wanted)  # type: ignore[misc]
    is_dirty = access & WRITE or path[-1][1] & PTE_D
    return rights if is_dirty else rights & ~WRITE
