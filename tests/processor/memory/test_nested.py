"""The walk nested under EPT: rights, violations, flags, memory types, host addresses."""

from __future__ import annotations

from typing import NoReturn

import pytest

from tests.processor.bare import FLAT, Bare, Tables
from trapline.arch.paging import (
    EPT_ACCESSED,
    EPT_DIRTY,
    EPT_EXECUTE,
    EPT_IGNORE_PAT,
    EPT_READ,
    EPT_WRITE,
    PTE_A,
    PTE_D,
    PTE_PCD,
    MemoryType,
)
from trapline.processor.fault import Fault
from trapline.processor.guest import NESTED_EPT
from trapline.processor.memory import FETCH, READ, WRITE

LINEAR = 0x40_0000_5000
ALL = EPT_READ | EPT_WRITE | EPT_EXECUTE
WB = MemoryType.WB << 3
OFFSET = 0x800000  # guest-physical pages lie here in RAM


class Left(Exception):
    """The guest was left; the arguments say why."""


class StubGuest:
    def __init__(self, pointer: int) -> None:
        self.ept_pointer: int | None = pointer
        self.nested_format = NESTED_EPT
        self.tsc_offset = 0

    def ept_violation(
        self, guest_physical: int, access: int, allowed: int, linear: int | None, is_walk: bool
    ) -> NoReturn:
        raise Left("violation", guest_physical, access, allowed, linear, is_walk)

    def ept_misconfiguration(self, guest_physical: int) -> NoReturn:
        raise Left("misconfiguration", guest_physical)


class Nested:
    """A guest whose physical memory is RAM from OFFSET up, with one page of its own mapped."""

    def __init__(self, has_flags: bool = False) -> None:
        self.bare = Bare()
        self.ept = Tables(self.bare, start=0x100000)
        self.page = 0x9000
        self.leaf = 0
        for guest_physical in range(0, 0x10000, 0x1000):
            self.map(guest_physical, guest_physical + OFFSET)
        self.build_guest_tables()
        pointer = self.ept.root | 6 | 3 << 3 | (1 << 6 if has_flags else 0)
        self.bare.guest = StubGuest(pointer)
        self.bare.enter_long_mode(0x1000, cpl=3)

    def map(self, guest_physical: int, host: int, flags: int = ALL | WB, level: int = 1) -> int:
        at = self.ept.entry(guest_physical, level, flags=ALL)
        self.bare.set_word(at, host | flags | (0x80 if level > 1 else 0))
        return at

    def build_guest_tables(self) -> None:
        table = 0x1000
        for level in (4, 3, 2):
            at = OFFSET + table + 8 * (LINEAR >> (3 + 9 * level) & 0x1FF)
            self.bare.set_word(at, table + 0x1000 | FLAT)
            table += 0x1000
        self.leaf = OFFSET + table + 8 * (LINEAR >> 12 & 0x1FF)
        self.bare.set_word(self.leaf, self.page | FLAT)

    def left(self, kind: int) -> tuple[object, ...]:
        with pytest.raises(Left) as caught:
            self.bare.memory.translate(LINEAR, kind)
        return caught.value.args


def test_both_walks_lead_to_the_host_page() -> None:
    nested = Nested()
    nested.bare.memory.write(LINEAR + 16, 8, 0xDEAD)
    assert nested.bare.word(OFFSET + nested.page + 16) == 0xDEAD
    assert nested.bare.word(nested.leaf) & (PTE_A | PTE_D) == PTE_A | PTE_D
    translation = nested.bare.memory.translate(LINEAR + 1, READ)
    assert translation.physical == OFFSET + nested.page + 1
    assert translation.host == nested.bare.bus.start + OFFSET + nested.page + 1


def test_guest_page_faults_come_before_violations() -> None:
    nested = Nested()
    nested.bare.set_word(nested.leaf, 0)
    with pytest.raises(Fault) as caught:
        nested.bare.memory.read(LINEAR, 1)
    assert (caught.value.vector, caught.value.error_code) == (14, 4)


def test_an_unmapped_final_page_is_a_violation_with_no_rights() -> None:
    nested = Nested()
    nested.map(nested.page, 0, 0)
    assert nested.left(READ) == ("violation", nested.page, READ, 0, LINEAR, False)
    assert nested.left(WRITE) == ("violation", nested.page, WRITE, 0, LINEAR, False)


@pytest.mark.parametrize(
    ("allowed", "kind"), [(EPT_READ, WRITE), (EPT_READ | EPT_WRITE, FETCH), (EPT_EXECUTE, READ)]
)
def test_rights_of_the_final_page_are_checked(allowed: int, kind: int) -> None:
    nested = Nested()
    nested.map(nested.page, OFFSET + nested.page, allowed | WB)
    assert nested.left(kind) == ("violation", nested.page, kind, allowed, LINEAR, False)


def test_rights_are_those_that_all_levels_allow() -> None:
    nested = Nested()
    above = nested.ept.entry(nested.page, 2)
    nested.bare.set_word(above, nested.bare.word(above) & ~EPT_EXECUTE)
    assert nested.left(FETCH)[3] == EPT_READ | EPT_WRITE


def test_a_page_learned_by_reading_can_be_written_when_allowed() -> None:
    nested = Nested()
    nested.bare.memory.read(LINEAR, 1)
    nested.bare.memory.write(LINEAR, 1, 7)
    assert nested.bare.word(OFFSET + nested.page, 1) == 7


def test_a_walk_that_must_mark_a_read_only_table_is_a_violation() -> None:
    nested = Nested()
    nested.map(0x4000, OFFSET + 0x4000, EPT_READ | WB)
    assert nested.left(READ) == (
        "violation", nested.leaf - OFFSET, READ | WRITE, EPT_READ, LINEAR, True,
    )  # fmt: skip
    nested.bare.set_word(nested.leaf, nested.bare.word(nested.leaf) | PTE_A)
    assert nested.bare.memory.translate(LINEAR, READ).physical == OFFSET + nested.page


def test_with_ept_flags_a_walk_counts_as_writing() -> None:
    nested = Nested(has_flags=True)
    nested.map(0x1000, OFFSET + 0x1000, EPT_READ | WB)
    assert nested.left(READ)[1:] == (
        0x1000 + 8 * (LINEAR >> 39), READ | WRITE, EPT_READ, LINEAR, True,
    )  # fmt: skip


def test_ept_flags_are_set_when_due() -> None:
    nested = Nested(has_flags=True)
    at = nested.ept.entry(nested.page)
    nested.bare.memory.read(LINEAR, 1)
    assert nested.bare.word(at) & (EPT_ACCESSED | EPT_DIRTY) == EPT_ACCESSED
    nested.bare.memory.write(LINEAR, 1, 0)
    assert nested.bare.word(at) & (EPT_ACCESSED | EPT_DIRTY) == EPT_ACCESSED | EPT_DIRTY
    assert nested.bare.word(nested.ept.entry(0x1000)) & EPT_DIRTY


@pytest.mark.parametrize("flags", [EPT_WRITE | WB, ALL | 2 << 3, ALL | 7 << 3])
def test_misconfigured_entries_leave_the_guest(flags: int) -> None:
    nested = Nested()
    nested.map(nested.page, OFFSET + nested.page, flags)
    assert nested.left(READ) == ("misconfiguration", nested.page)


def test_large_ept_pages_map_their_whole_size() -> None:
    nested = Nested()
    nested.bare.set_word(nested.leaf, 0x40_0000 + 0x3000 | FLAT)
    nested.map(0x40_0000, 0x60_0000, level=2)
    assert nested.bare.memory.translate(LINEAR, WRITE).physical == 0x60_3000


@pytest.mark.parametrize(
    ("ept_flags", "guest_flags", "kind"),
    [
        (WB, 0, MemoryType.WB),
        (WB, PTE_PCD, MemoryType.UC),
        (WB | EPT_IGNORE_PAT, PTE_PCD, MemoryType.WB),
        (0, 0, MemoryType.UC),
        (MemoryType.WC << 3, 0, MemoryType.WC),
    ],
)
def test_memory_types_combine(ept_flags: int, guest_flags: int, kind: int) -> None:
    nested = Nested()
    nested.map(nested.page, OFFSET + nested.page, ALL | ept_flags)
    nested.bare.set_word(nested.leaf, nested.page | FLAT | guest_flags)
    assert nested.bare.memory.translate(LINEAR, READ).memory_type == kind


def test_cached_frames_stay_until_they_are_flushed() -> None:
    nested = Nested()
    nested.bare.memory.write(LINEAR, 1, 1)
    nested.map(nested.page, 0, 0)
    nested.bare.memory.write(LINEAR, 1, 2)
    nested.bare.memory.flush_frames()
    assert nested.left(WRITE)[0] == "violation"


def test_a_pointer_that_comes_again_starts_afresh() -> None:
    nested = Nested()
    first = nested.bare.guest.ept_pointer
    nested.bare.memory.write(LINEAR, 1, 1)
    other = Tables(nested.bare, start=0x300000)
    nested.bare.guest.ept_pointer = other.root | 6 | 3 << 3
    nested.bare.memory.mode_changed()
    assert nested.left(READ)[1] == 0x1000 + 8 * (LINEAR >> 39)  # the guest's own root
    nested.map(nested.page, 0, 0)
    nested.bare.guest.ept_pointer = first
    nested.bare.memory.mode_changed()
    assert nested.left(WRITE)[1] == nested.page
