"""The page tables against a walk written from the manual (SDM 3A, "4-Level Paging")."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.arch.paging import PTE_BASE, PTE_D, PTE_NX, PTE_P, PTE_U, PTE_W
from trapline.process.page_tables import PageTables, user_flags

PHYSICAL = 0x1_0000_0000
MONITOR = 0xFFFF_8000_0000_0000
PAGE = 4096


def make(pages: int = 64) -> tuple[PageTables, memoryview]:
    words = memoryview(bytearray(pages * PAGE)).cast("Q")
    tables = PageTables(words, PHYSICAL, 1)
    tables.reserve(MONITOR, MONITOR + PAGE)
    return tables, words


def walk(tables: PageTables, words: memoryview, linear: int) -> int:
    """The last-level entry, found as a processor does."""
    table = tables.cr3
    for shift in (39, 30, 21):
        entry = words[(table - PHYSICAL) // 8 + (linear >> shift & 511)]
        if not entry & PTE_P:
            return 0
        assert entry & PTE_U
        assert entry & PTE_W
        table = entry & PTE_BASE
    return int(words[(table - PHYSICAL) // 8 + (linear >> 12 & 511)])


linears = st.sampled_from(
    [0x400000, 0x5FF000, 0x600000, 0x5555_5555_4000, 0x7FFF_FFFF_E000, 0x1_0000_0000]
)


@given(st.lists(st.tuples(linears, st.integers(1, 4), st.booleans(), st.booleans()), max_size=8))
def test_a_walk_finds_what_was_mapped(runs: list[tuple[int, int, bool, bool]]) -> None:
    tables, words = make()
    expected: dict[int, int] = {}
    for linear, pages, writable, executable in runs:
        pages = min(pages, 512 - (linear >> 12 & 511))
        flags = user_flags(writable, executable)
        tables.map_run(linear, 0x2_0000_0000 + linear % (1 << 30), pages, flags)
        for index in range(pages):
            physical = 0x2_0000_0000 + linear % (1 << 30) + index * PAGE
            expected[linear + index * PAGE] = physical | flags
    for linear, entry in expected.items():
        assert walk(tables, words, linear) == entry == tables.entry(linear)


def test_clearing_a_range_leaves_its_neighbours() -> None:
    tables, words = make()
    tables.map_run(0x5FE000, 0x2_0000_0000, 2, user_flags(True, False))
    tables.map_run(0x600000, 0x2_0000_2000, 3, user_flags(True, False))
    assert tables.clear(0x5FF000, 0x601000)
    mapped = [bool(walk(tables, words, 0x5FE000 + i * PAGE)) for i in range(5)]
    assert mapped == [True, False, False, True, True]
    assert not tables.clear(0x5FF000, 0x601000)


@pytest.mark.parametrize(
    ("before", "after", "narrowed"),
    [
        (user_flags(True, False), user_flags(False, False), True),
        (user_flags(False, False), user_flags(True, False), False),
        (user_flags(False, True), user_flags(False, False), True),
        (user_flags(True, False), 0, True),
        (user_flags(True, True), user_flags(True, True), False),
    ],
)
def test_protect_says_whether_a_right_was_lost(before: int, after: int, narrowed: bool) -> None:
    tables, words = make()
    tables.map_run(0x400000, 0x2_0000_0000, 1, before)
    assert tables.protect(0x400000, 0x401000, after) is narrowed
    entry = walk(tables, words, 0x400000)
    rights = PTE_P | PTE_W | PTE_U | PTE_NX
    assert entry & rights == after & rights
    assert entry & PTE_BASE == 0x2_0000_0000


def test_forgetting_drops_the_program_and_keeps_the_monitor() -> None:
    tables, words = make()
    tables.map_page(MONITOR, PHYSICAL, PTE_P)
    for _ in range(20):  # the tables are reused, or the arena would run out
        tables.map_run(0x400000, 0x2_0000_0000, 1, user_flags(True, False))
        tables.map_run(0x7FFF_0000_0000, 0x3_0000_0000, 1, user_flags(True, False))
        tables.forget()
        assert walk(tables, words, 0x400000) == 0 == tables.entry(0x400000)
        assert walk(tables, words, 0x7FFF_0000_0000) == 0
        assert tables.entry(MONITOR) == PHYSICAL | PTE_P


def test_a_full_arena_is_an_error_and_not_a_wild_write() -> None:
    tables, _ = make(8)
    with pytest.raises(MemoryError):
        for index in range(10):
            tables.map_run(index << 39, 0, 1, user_flags(True, False))


def test_dirty_is_set_beforehand_only_where_writing_is_allowed() -> None:
    assert user_flags(True, False) & PTE_D
    assert not user_flags(False, False) & PTE_D
