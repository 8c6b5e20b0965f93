"""The page walk in every mode: rights, faults and their codes, accessed and dirty flags, types."""

from __future__ import annotations

import pytest

from tests.processor.bare import FLAT, Bare, Tables
from trapline.arch.paging import (
    PTE_A,
    PTE_D,
    PTE_NX,
    PTE_P,
    PTE_PAT,
    PTE_PCD,
    PTE_PS,
    PTE_PWT,
    PTE_U,
    PTE_W,
    MemoryType,
)
from trapline.arch.registers import (
    CR0_CD,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_NXE,
    RFLAGS_AC,
)
from trapline.processor.fault import Fault
from trapline.processor.memory import FETCH, READ, WRITE

LINEAR = 0x7F12_3456_7000
PHYSICAL = 0x5000
P, W, U, RSVD, ID, PK = 1, 2, 4, 8, 16, 32


@pytest.fixture
def bare() -> Bare:
    return Bare()


def long_mode(bare: Bare, cpl: int = 3) -> Tables:
    tables = Tables(bare)
    bare.enter_long_mode(tables.root, cpl)
    return tables


def page_fault(bare: Bare, linear: int, kind: int) -> int | None:
    """The error code of the page fault that an access raises."""
    with pytest.raises(Fault) as caught:
        bare.memory.translate(linear, kind)
    assert (caught.value.vector, caught.value.cr2) == (14, linear)
    return caught.value.error_code


def test_unpaged_addresses_are_physical(bare: Bare) -> None:
    bare.memory.write(0x1234, 4, 0xCAFEBABE)
    assert bare.word(0x1234, 4) == 0xCAFEBABE
    assert bare.memory.read(0x1234, 4) == 0xCAFEBABE


def test_four_levels_lead_to_the_page(bare: Bare) -> None:
    tables = long_mode(bare)
    tables.map(LINEAR, PHYSICAL)
    bare.memory.write(LINEAR + 8, 8, 0x1122334455667788)
    assert bare.word(PHYSICAL + 8) == 0x1122334455667788


def test_five_levels_lead_to_the_page() -> None:
    bare = Bare("max")
    tables = Tables(bare, levels=5)
    bare.state.cr4 = CR4_LA57
    bare.enter_long_mode(tables.root)
    linear = 0xFF11_2233_4455_6000 & 0x00FF_FFFF_FFFF_FFFF
    tables.map(linear, PHYSICAL)
    assert bare.memory.translate(linear, READ).physical == PHYSICAL
    with pytest.raises(Fault) as caught:
        bare.memory.read(1 << 56, 8)
    assert (caught.value.vector, caught.value.error_code) == (13, 0)


@pytest.mark.parametrize(("level", "size"), [(2, 1 << 21), (3, 1 << 30)])
def test_large_pages_map_their_whole_size(bare: Bare, level: int, size: int) -> None:
    tables = long_mode(bare)
    tables.map(size * 5, 0, level=level)
    offset = 0x12345
    assert bare.memory.translate(size * 5 + offset, READ).physical == offset
    at = tables.entry(size * 5, level)
    bare.set_word(at, bare.word(at) | 1 << 20)  # an address bit inside the page is reserved
    bare.memory.flush()
    assert page_fault(bare, size * 5 + offset, READ) == P | U | RSVD


@pytest.mark.parametrize("linear", [0x0000_8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63])
def test_non_canonical_addresses_are_general_protection(bare: Bare, linear: int) -> None:
    long_mode(bare)
    for access in (bare.memory.read, bare.memory.fetch):
        with pytest.raises(Fault) as caught:
            access(linear, 1)
        assert (caught.value.vector, caught.value.error_code) == (13, 0)


def test_absent_pages_fault_with_the_kind_of_access(bare: Bare) -> None:
    long_mode(bare)
    assert page_fault(bare, LINEAR, READ) == U
    assert page_fault(bare, LINEAR, WRITE) == U | W
    assert page_fault(bare, LINEAR, FETCH) == U | ID
    bare.set_cpl(0)
    assert page_fault(bare, LINEAR, WRITE) == W


def test_fetch_is_not_told_without_nx_and_smep(bare: Bare) -> None:
    long_mode(bare)
    bare.state.efer &= ~EFER_NXE
    bare.memory.mode_changed()
    assert page_fault(bare, LINEAR, FETCH) == U
    bare.state.cr4 |= CR4_SMEP
    bare.memory.mode_changed()
    assert page_fault(bare, LINEAR, FETCH) == U | ID


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("cleared", "kind", "code"), [(PTE_U, READ, P | U), (PTE_W, WRITE, P | U | W)]
)
def test_every_level_must_allow_what_a_user_does(
    bare: Bare, level: int, cleared: int, kind: int, code: int
) -> None:
    tables = long_mode(bare)
    tables.map(LINEAR, PHYSICAL)
    at = tables.entry(LINEAR, level)
    bare.set_word(at, bare.word(at) & ~cleared)
    assert page_fault(bare, LINEAR, kind) == code


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_no_execute_at_any_level_stops_fetching(bare: Bare, level: int) -> None:
    tables = long_mode(bare)
    tables.map(LINEAR, PHYSICAL)
    at = tables.entry(LINEAR, level)
    bare.set_word(at, bare.word(at) | PTE_NX)
    assert page_fault(bare, LINEAR, FETCH) == P | U | ID
    assert bare.memory.translate(LINEAR, WRITE).physical == PHYSICAL
    bare.state.efer &= ~EFER_NXE
    bare.memory.mode_changed()
    assert page_fault(bare, LINEAR, READ) == P | U | RSVD


def test_write_protect_decides_for_the_supervisor(bare: Bare) -> None:
    tables = long_mode(bare, cpl=0)
    tables.map(LINEAR, PHYSICAL, PTE_P)
    assert page_fault(bare, LINEAR, WRITE) == P | W
    bare.state.cr0 &= ~CR0_WP
    bare.memory.mode_changed()
    assert bare.memory.translate(LINEAR, WRITE).physical == PHYSICAL


def test_smap_keeps_the_supervisor_from_user_data(bare: Bare) -> None:
    tables = long_mode(bare, cpl=0)
    tables.map(LINEAR, PHYSICAL)
    bare.state.cr4 |= CR4_SMAP
    bare.memory.mode_changed()
    assert page_fault(bare, LINEAR, READ) == P
    bare.state.system_flags |= RFLAGS_AC
    bare.memory.privilege_changed()
    assert bare.memory.read(LINEAR, 1) == 0
    with pytest.raises(Fault) as caught:
        bare.memory.read(LINEAR, 1, implicit=True)  # AC does not lift it for implicit accesses
    assert caught.value.error_code == P
    assert bare.memory.translate(LINEAR, FETCH)


def test_smep_keeps_the_supervisor_from_user_code(bare: Bare) -> None:
    tables = long_mode(bare, cpl=0)
    tables.map(LINEAR, PHYSICAL)
    bare.state.cr4 |= CR4_SMEP
    bare.memory.mode_changed()
    assert page_fault(bare, LINEAR, FETCH) == P | ID
    assert bare.memory.read(LINEAR, 1) == 0


def test_protection_keys_refuse_data_but_not_code() -> None:
    bare = Bare("max")
    tables = long_mode(bare)
    tables.map(LINEAR, PHYSICAL, FLAT | 5 << 59)
    bare.state.cr4 |= CR4_PKE
    bare.memory.mode_changed()
    bare.memory.walker.pkru = 2 << 10
    assert bare.memory.read(LINEAR, 1) == 0
    assert page_fault(bare, LINEAR, WRITE) == P | U | W | PK
    bare.memory.walker.pkru = 1 << 10
    bare.memory.flush()
    assert page_fault(bare, LINEAR, READ) == P | U | PK
    assert bare.memory.fetch(LINEAR, 1) == b"\0"


def test_accessed_and_dirty_are_set_when_due(bare: Bare) -> None:
    tables = long_mode(bare)
    leaf = tables.map(LINEAR, PHYSICAL)
    bare.memory.read(LINEAR, 8)
    assert bare.word(leaf) & (PTE_A | PTE_D) == PTE_A
    for level in (2, 3, 4):
        assert bare.word(tables.entry(LINEAR, level)) & (PTE_A | PTE_D) == PTE_A
    bare.memory.write(LINEAR, 8, 1)
    assert bare.word(leaf) & (PTE_A | PTE_D) == PTE_A | PTE_D
    assert not bare.word(tables.entry(LINEAR, 2)) & PTE_D


def test_a_refused_access_leaves_the_entries_alone(bare: Bare) -> None:
    tables = long_mode(bare)
    leaf = tables.map(LINEAR, PHYSICAL, PTE_P | PTE_U)
    page_fault(bare, LINEAR, WRITE)
    assert not bare.word(leaf) & (PTE_A | PTE_D)


def test_two_level_paging_with_small_and_large_pages(bare: Bare) -> None:
    bare.set_word(0x2000 + 4 * 1, 0x3000 | FLAT, 4)
    bare.set_word(0x3000 + 4 * 2, PHYSICAL | FLAT, 4)
    bare.set_word(0x2000 + 4 * 2, 0x400000 | FLAT | PTE_PS, 4)
    state = bare.state
    state.cr3, state.cr4, state.cr0 = 0x2000, CR4_PSE, CR0_PE | CR0_PG
    bare.memory.mode_changed()
    assert bare.memory.translate(0x402123, WRITE).physical == PHYSICAL + 0x123
    assert bare.word(0x3008, 4) & (PTE_A | PTE_D) == PTE_A | PTE_D
    assert bare.memory.translate(0x812345, READ).physical == 0x412345
    assert page_fault(bare, 0x403000, READ) == 0
    bare.set_word(0x2000 + 4 * 3, 0x200000 | FLAT | PTE_PS, 4)  # bit 21 is reserved
    assert page_fault(bare, 0xC00000, READ) == P | RSVD


def test_pae_walks_from_the_registers_loaded_with_cr3(bare: Bare) -> None:
    state = bare.state
    bare.set_word(0x2000 + 8, 0x3000 | PTE_P)
    bare.set_word(0x3000, 0x4000 | FLAT)
    bare.set_word(0x4008, PHYSICAL | FLAT | PTE_NX)
    bare.set_word(0x3008, 0x200000 | FLAT | PTE_PS)
    state.cr3, state.cr4, state.cr0 = 0x2000, CR4_PAE, CR0_PE | CR0_PG
    state.efer = EFER_NXE
    bare.memory.walker.pdptes = bare.memory.walker.read_pdptes(0x2000)
    bare.memory.mode_changed()
    assert bare.memory.translate(0x40001234, WRITE).physical == PHYSICAL + 0x234
    assert page_fault(bare, 0x40001234, FETCH) == P | ID
    assert bare.memory.translate(0x40212345, READ).physical == 0x212345
    assert page_fault(bare, 0x80000000, READ) == 0
    bare.set_word(0x4008, PHYSICAL | FLAT | 1 << 52)  # 62:52 are reserved outside long mode
    bare.memory.flush()
    assert page_fault(bare, 0x40001234, READ) == P | RSVD
    bare.set_word(0x2000, 0x3000 | PTE_P | PTE_W)
    with pytest.raises(Fault) as caught:
        bare.memory.walker.read_pdptes(0x2000)
    assert caught.value.vector == 13


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (0, MemoryType.WB),
        (PTE_PWT, MemoryType.WT),
        (PTE_PCD, MemoryType.UC),
        (PTE_PAT, MemoryType.WC),
        (PTE_PAT | PTE_PWT, MemoryType.WP),
    ],
)
def test_the_type_of_a_page_comes_from_the_pat(bare: Bare, flags: int, kind: int) -> None:
    tables = long_mode(bare)
    tables.map(LINEAR, PHYSICAL, FLAT | flags)
    bare.state.pat = 0x0000_0501_0007_0406  # 4: WC, 5: WP
    bare.memory.mode_changed()
    assert bare.memory.translate(LINEAR, READ).memory_type == kind


def test_large_pages_have_their_pat_bit_higher_up(bare: Bare) -> None:
    tables = long_mode(bare)
    tables.map(0, 0, FLAT | 1 << 12, level=2)
    bare.state.pat = 0x0000_0001_0007_0406
    bare.memory.mode_changed()
    assert bare.memory.translate(0, READ).memory_type == MemoryType.WC


def test_mtrrs_and_cache_disable_override(bare: Bare) -> None:
    tables = long_mode(bare)
    tables.map(LINEAR, 0xA0000)
    tables.map(LINEAR + 0x1000, 0x800000)
    bare.msrs.write(0x2FF, 0xC06)
    bare.msrs.write(0x259, 0x01)  # the first 16 KiB of A0000: WC
    bare.msrs.write(0x200, 0x800000)  # UC
    bare.msrs.write(0x201, (1 << 52) - 0x1000 | 1 << 11)
    kinds = [bare.memory.translate(LINEAR + i * 0x1000, READ).memory_type for i in (0, 1)]
    assert kinds == [MemoryType.WC, MemoryType.UC]
    bare.state.cr0 |= CR0_CD
    bare.memory.mode_changed()
    assert bare.memory.translate(LINEAR, READ).memory_type == MemoryType.UC
