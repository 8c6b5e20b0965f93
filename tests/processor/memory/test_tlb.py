"""The tables that native code reads: what a tag promises, and when it is taken back."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import pytest

from tests.processor.bare import FLAT, Bare, Tables
from trapline.arch.paging import PTE_A, PTE_D, PTE_P, PTE_PCD, PTE_W
from trapline.arch.registers import CR0_AM, CR4_SMAP, RFLAGS_AC
from trapline.processor.memory import READ, WRITE

PAGE = 0x7FFF_1234_5000
MASK = (1 << 64) - 1


def user(flags: int = FLAT) -> tuple[Bare, Tables]:
    bare = Bare()
    tables = Tables(bare)
    tables.map(PAGE, 0x8000, flags)
    bare.enter_long_mode(tables.root, cpl=3)
    return bare, tables


def entry(bare: Bare, linear: int = PAGE) -> tuple[int, int, int, int]:
    """tag_read, tag_write, tag_lock, addend, as native code finds them from state.tlb."""
    at = bare.state.tlb + 32 * (linear >> 12 & 0xFFFF)
    return tuple((ctypes.c_uint64 * 4).from_address(at))  # type: ignore[return-value]


def test_a_page_read_once_may_be_read_natively() -> None:
    bare, _ = user()
    bare.memory.read(PAGE + 8, 8)
    tag_read, tag_write, tag_lock, addend = entry(bare)
    assert (tag_read, tag_write, tag_lock) == (PAGE | 0xFFF, 0, 0)
    assert PAGE + addend & MASK == bare.bus.start + 0x8000


def test_writing_natively_waits_for_the_dirty_flag() -> None:
    bare, _ = user()
    assert bare.memory.fill(PAGE, READ)
    assert entry(bare)[1] == 0
    assert bare.memory.fill(PAGE, WRITE)
    assert entry(bare)[:3] == (PAGE | 0xFFF,) * 3
    bare, _ = user(FLAT | PTE_A | PTE_D)
    bare.memory.fill(PAGE, READ)
    assert entry(bare)[:3] == (PAGE | 0xFFF,) * 3


def test_locked_updates_are_native_on_write_back_pages_only() -> None:
    bare, _ = user(FLAT | PTE_PCD)
    assert bare.memory.fill(PAGE, WRITE)
    assert entry(bare)[:3] == (PAGE | 0xFFF, PAGE | 0xFFF, 0)


def test_each_privilege_has_its_table() -> None:
    bare, tables = user()
    tables.map(0x1000, 0x9000, PTE_P | PTE_W)
    state = bare.state
    bare.memory.read(PAGE, 1)
    state.cr4 |= CR4_SMAP
    bare.memory.mode_changed()
    bare.set_cpl(0)
    assert state.tlb == state.tlb_supervisor
    bare.memory.read(0x1000, 1)
    assert entry(bare, 0x1000)[0] and not entry(bare)[0]
    state.system_flags |= RFLAGS_AC
    bare.memory.privilege_changed()
    assert state.tlb == state.tlb_supervisor_ac
    bare.memory.read(PAGE, 1)
    assert entry(bare)[0]
    bare.set_cpl(3)
    assert state.tlb == state.tlb_user
    assert not entry(bare, 0x1000)[0]


def test_alignment_checking_hides_every_page() -> None:
    bare, _ = user()
    bare.state.cr0 |= CR0_AM
    bare.state.system_flags |= RFLAGS_AC
    bare.memory.privilege_changed()
    assert not bare.memory.fill(PAGE, READ)
    assert entry(bare) == (0, 0, 0, 0)
    assert bare.memory.read(PAGE, 8) == 0
    assert entry(bare) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("dr7", "read", "write"), [(0x0D0001, True, False), (0x0F0001, False, False)]
)
def test_watched_pages_are_hidden_as_far_as_needed(dr7: int, read: bool, write: bool) -> None:
    bare, _ = user()
    bare.memory.fill(PAGE, WRITE)
    bare.state.dr0, bare.state.dr7 = PAGE + 0x800, dr7
    bare.memory.breakpoints_changed()
    assert entry(bare)[0] == 0
    bare.memory.write(PAGE, 1, 0)
    assert (bool(entry(bare)[0]), bool(entry(bare)[1]), bool(entry(bare)[2])) == (
        read,
        write,
        write,
    )


def test_devices_are_never_native() -> None:
    bare, _ = user()
    bare.bus.attach(0x8000, 0x1000, cast(Any, None))  # never asked
    assert not bare.memory.fill(PAGE, READ)
    assert entry(bare)[:3] == (0, 0, 0)


def test_translated_code_keeps_only_reads() -> None:
    bare, _ = user()
    bare.memory.fill(PAGE, WRITE)
    bare.memory.tlb.deny_write(bare.bus.start + 0x8000)
    assert entry(bare)[:3] == (PAGE | 0xFFF, 0, 0)
    assert not bare.memory.fill(PAGE, WRITE)
    bare.memory.tlb.allow_write(bare.bus.start + 0x8000)
    assert bare.memory.fill(PAGE, WRITE)


def test_flush_empties_the_tables_however_full() -> None:
    bare, tables = user()
    for count in (3, 5000):
        linears = [0x1000_0000 + i * 0x1000 for i in range(count)]
        for linear in linears:
            tables.map(linear, 0x8000)
            bare.memory.read(linear, 1)
        assert all(entry(bare, linear)[0] for linear in linears)
        bare.memory.flush()
        assert not any(entry(bare, linear)[0] for linear in linears)


def test_flush_page_takes_one_page_back() -> None:
    bare, tables = user()
    tables.map(PAGE + 0x1000, 0x9000)
    bare.memory.read(PAGE, 1)
    bare.memory.read(PAGE + 0x1000, 1)
    bare.memory.flush_page(PAGE + 5)
    assert entry(bare)[0] == 0
    assert entry(bare, PAGE + 0x1000)[0]


def test_pages_that_share_an_entry_replace_each_other() -> None:
    bare, tables = user()
    other = PAGE ^ 1 << 28
    tables.map(other, 0x9000)
    bare.memory.read(PAGE, 1)
    bare.memory.read(other, 1)
    assert entry(bare)[0] == other | 0xFFF
    bare.memory.flush_page(PAGE)
    assert entry(bare)[0] == other | 0xFFF
    assert bare.memory.fill(PAGE, READ)
    assert entry(bare)[0] == PAGE | 0xFFF
