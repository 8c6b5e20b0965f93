"""Memory types: what the MTRRs say of a physical page, and the type an access ends up with.

The tables of the manual are in `arch.paging`; this file holds the registers and asks them.
"""

from __future__ import annotations

from trapline.arch.msr import (
    IA32_MTRR_DEF_TYPE,
    IA32_MTRR_FIX4K_C0000,
    IA32_MTRR_FIX16K_80000,
    IA32_MTRR_FIX16K_A0000,
    IA32_MTRR_FIX64K_00000,
    IA32_MTRR_PHYSBASE0,
    IA32_MTRRCAP,
    MTRR_DEF_TYPE_ENABLE,
    MTRR_DEF_TYPE_FIXED_ENABLE,
    MTRR_PHYSMASK_VALID,
    MTRRCAP_FIXED,
    MTRRCAP_WC,
)
from trapline.arch.paging import EFFECTIVE_TYPE, MemoryType, is_valid_mtrr_type, overlap_mtrr
from trapline.processor.fault import Fault

UC, WC, WT, WP, WB, UC_MINUS = (int(kind) for kind in (0, 1, 4, 5, 6, 7))

# EFFECTIVE_TYPE by 8 * (MTRR or EPT type) + PAT type, for the walk; UC for numbers that are none.
_BY_NUMBER: dict[tuple[int, int], int] = {
    (int(mtrr), int(pat)): int(kind) for (mtrr, pat), kind in EFFECTIVE_TYPE.items()
}
EFFECTIVE = tuple(_BY_NUMBER.get((mtrr, pat), UC) for mtrr in range(8) for pat in range(8))

VARIABLE_RANGES = 8
_FIXED = {
    IA32_MTRR_FIX64K_00000: (0x00000, 0x10000),
    IA32_MTRR_FIX16K_80000: (0x80000, 0x4000),
    IA32_MTRR_FIX16K_A0000: (0xA0000, 0x4000),
    **{IA32_MTRR_FIX4K_C0000 + i: (0xC0000 + i * 0x8000, 0x1000) for i in range(8)},
}
_LAST_VARIABLE = IA32_MTRR_PHYSBASE0 + 2 * VARIABLE_RANGES - 1
MTRR_NUMBERS = frozenset(
    {IA32_MTRRCAP, IA32_MTRR_DEF_TYPE, *_FIXED, *range(IA32_MTRR_PHYSBASE0, _LAST_VARIABLE + 1)}
)


class Mtrrs:
    """The memory type range registers of one processor (SDM 3A, "MTRRs")."""

    def __init__(self, physical_bits: int) -> None:
        self._addresses = (1 << physical_bits) - (1 << 12)
        self._registers = dict.fromkeys(MTRR_NUMBERS, 0)
        self._registers[IA32_MTRRCAP] = VARIABLE_RANGES | MTRRCAP_FIXED | MTRRCAP_WC
        self._ranges: list[tuple[int, int, int]] = []  # mask, masked base, type

    def read(self, number: int) -> int:
        return self._registers[number]

    def write(self, number: int, word: int) -> None:
        """WRMSR; #GP(0) for what the manual reserves."""
        if not self._accepts(number, word):
            raise Fault(13, 0)
        self._registers[number] = word
        self._ranges = []
        for base in range(IA32_MTRR_PHYSBASE0, _LAST_VARIABLE, 2):
            mask = self._registers[base + 1]
            if mask & MTRR_PHYSMASK_VALID:
                start, covered = self._registers[base], mask & self._addresses
                self._ranges.append((covered, start & covered, start & 0xFF))

    def _accepts(self, number: int, word: int) -> bool:
        if number == IA32_MTRRCAP:
            return False
        if number == IA32_MTRR_DEF_TYPE:
            defined = MTRR_DEF_TYPE_ENABLE | MTRR_DEF_TYPE_FIXED_ENABLE | 0xFF
            return not word & ~defined and is_valid_mtrr_type(word & 0xFF)
        if number in _FIXED:
            return all(is_valid_mtrr_type(kind) for kind in word.to_bytes(8, "little"))
        if number & 1:
            return not word & ~(self._addresses | MTRR_PHYSMASK_VALID)
        return not word & ~(self._addresses | 0xFF) and is_valid_mtrr_type(word & 0xFF)

    def type_of(self, physical: int) -> int:
        """The type of the 4 KiB page at a physical address."""
        control = self._registers[IA32_MTRR_DEF_TYPE]
        if not control & MTRR_DEF_TYPE_ENABLE:
            return UC
        if physical < 0x100000 and control & MTRR_DEF_TYPE_FIXED_ENABLE:
            return self._fixed_type(physical)
        found: MemoryType | None = None
        for mask, base, kind in self._ranges:
            if physical & mask == base:
                kind = MemoryType(kind)
                found = kind if found is None else overlap_mtrr(found, kind)
        return control & 0xFF if found is None else int(found)

    def _fixed_type(self, physical: int) -> int:
        for number, (start, each) in _FIXED.items():
            if start <= physical < start + 8 * each:
                return self._registers[number] >> 8 * ((physical - start) // each) & 0xFF
        return UC
