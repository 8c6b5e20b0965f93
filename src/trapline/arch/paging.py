"""Paging-structure entries of every mode, EPT entries, and memory types with their combinations.

Nothing here walks a table.
"""

from __future__ import annotations

from enum import IntEnum

PAGE_SIZE = 4096
PAGE_SHIFT = 12
PAGE_MASK = ~(PAGE_SIZE - 1) & (1 << 64) - 1
LARGE_2M = 1 << 21
LARGE_4M = 1 << 22
LARGE_1G = 1 << 30
CACHE_LINE = 64
PHYSICAL_WIDTH_MAX = 52

PTE_P = 1 << 0
PTE_W = 1 << 1
PTE_U = 1 << 2
PTE_PWT = 1 << 3
PTE_PCD = 1 << 4
PTE_A = 1 << 5
PTE_D = 1 << 6
PTE_PS = 1 << 7  # above the last level
PTE_PAT = 1 << 7  # in the last level of a 4 KiB page
PTE_G = 1 << 8
PTE_PAT_LARGE = 1 << 12
PTE_PKEY_SHIFT = 59
PTE_PKEY = 0xF << PTE_PKEY_SHIFT
PTE_NX = 1 << 63
PTE_BASE = 0x000FFFFF_FFFFF000

EPT_READ = 1 << 0
EPT_WRITE = 1 << 1
EPT_EXECUTE = 1 << 2
EPT_TYPE_SHIFT = 3
EPT_TYPE = 7 << EPT_TYPE_SHIFT
EPT_IGNORE_PAT = 1 << 6
EPT_LARGE = 1 << 7
EPT_ACCESSED = 1 << 8
EPT_DIRTY = 1 << 9
EPT_EXECUTE_USER = 1 << 10
EPT_SUPPRESS_VE = 1 << 63


class MemoryType(IntEnum):
    """Memory types by the numbers of PAT, MTRRs and EPT; 2 and 3 are reserved."""

    UC = 0
    WC = 1
    WT = 4
    WP = 5
    WB = 6
    UC_MINUS = 7  # in the PAT only


PAT_RESET = 0x0007040600070406


def pat_index(entry: int, is_large: bool) -> int:
    """The PAT entry that the last paging entry of a translation selects."""
    high = entry & (PTE_PAT_LARGE if is_large else PTE_PAT)
    return (entry & (PTE_PWT | PTE_PCD)) >> 3 | (4 if high else 0)


def pat_type(pat: int, index: int) -> MemoryType:
    """Entry `index` of an IA32_PAT value."""
    return MemoryType(pat >> (8 * index) & 7)


def is_valid_pat(pat: int) -> bool:
    """Whether WRMSR to IA32_PAT accepts the value."""
    return all(byte in (0, 1, 4, 5, 6, 7) for byte in pat.to_bytes(8, "little"))


def is_valid_mtrr_type(number: int) -> bool:
    return number in (0, 1, 4, 5, 6)


def overlap_mtrr(one: MemoryType, other: MemoryType) -> MemoryType:
    """The type where two variable MTRRs overlap."""
    # SDM 3A, "MTRR Precedences": UC wins, WT beats WB, the rest is undefined; we say UC.
    if one == other:
        return one
    if {one, other} == {MemoryType.WT, MemoryType.WB}:
        return MemoryType.WT
    return MemoryType.UC


def _table() -> dict[tuple[MemoryType, MemoryType], MemoryType]:
    uc, wc, wt, wp, wb = map(MemoryType, (0, 1, 4, 5, 6))
    pat_types = (uc, MemoryType.UC_MINUS, wc, wt, wb, wp)
    rows = {
        uc: (uc, uc, wc, uc, uc, uc),
        wc: (uc, wc, wc, uc, wc, uc),
        wt: (uc, uc, wc, wt, wt, wp),
        wb: (uc, uc, wc, wt, wb, wp),
        wp: (uc, wc, wc, wt, wp, wp),
    }
    return {
        (mtrr, pat): effective
        for mtrr, row in rows.items()
        for pat, effective in zip(pat_types, row, strict=True)
    }


# SDM 3A, "Effective Page-Level Memory Types for Pentium III and More Recent Processor
# Families", by (MTRR or EPT type, PAT type).
EFFECTIVE_TYPE = _table()
