"""Memory types: which PAT entry a page selects, and what MTRRs make of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.arch.paging import (
    EFFECTIVE_TYPE,
    PAT_RESET,
    PTE_PAT,
    PTE_PAT_LARGE,
    PTE_PCD,
    PTE_PWT,
    MemoryType,
    is_valid_pat,
    overlap_mtrr,
    pat_index,
    pat_type,
)

UC, WC, WT, WP, WB = map(MemoryType, (0, 1, 4, 5, 6))


def test_the_reset_pat_lists_wb_wt_uc_minus_uc_twice():
    types = [pat_type(PAT_RESET, index) for index in range(8)]
    assert types == [WB, WT, MemoryType.UC_MINUS, UC] * 2


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("index", range(8))
def test_pat_index_is_pat_pcd_pwt(index, is_large):
    pat = PTE_PAT_LARGE if is_large else PTE_PAT
    entry = PTE_PWT * (index & 1) | PTE_PCD * (index >> 1 & 1) | pat * (index >> 2)
    unrelated = PTE_PAT if is_large else PTE_PAT_LARGE
    assert pat_index(entry, is_large) == index
    assert pat_index(entry | unrelated, is_large) == index


def test_wb_ram_is_write_back_only_under_a_wb_pat():
    over_ram = {pat: EFFECTIVE_TYPE[WB, pat] for pat in MemoryType}
    assert over_ram == {UC: UC, WC: WC, WT: WT, WP: WP, WB: WB, MemoryType.UC_MINUS: UC}


def test_uc_minus_lets_an_mtrr_say_write_combining_and_uc_does_not():
    assert EFFECTIVE_TYPE[WC, MemoryType.UC_MINUS] is WC
    assert EFFECTIVE_TYPE[WC, UC] is UC


def test_nothing_is_write_back_unless_both_say_so():
    both = {pair for pair, effective in EFFECTIVE_TYPE.items() if effective is WB}
    assert both == {(WB, WB)}
    assert len(EFFECTIVE_TYPE) == 5 * 6


def test_overlapping_ranges():
    assert overlap_mtrr(WB, WB) is WB
    assert overlap_mtrr(WB, WT) is WT
    assert overlap_mtrr(WB, UC) is UC
    assert overlap_mtrr(UC, WT) is UC


@given(st.lists(st.integers(0, 255), min_size=8, max_size=8))
def test_pat_values_with_reserved_types_are_refused(entries):
    expected = all(entry in set(MemoryType) for entry in entries)
    assert is_valid_pat(int.from_bytes(bytes(entries), "little")) == expected
