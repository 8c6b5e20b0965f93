"""Control registers: what they accept, and what a change does to translations and modes."""

from __future__ import annotations

import pytest

from tests.processor.bare import FLAT
from tests.processor.long_mode import DATA, KERNEL, LongMode
from trapline.arch.registers import (
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    CR4_SMEP,
    CR4_UMIP,
    EFER_LMA,
)

GP, UD, PF = 13, 6, 14
MOV_CR0_RAX, MOV_RAX_CR0 = b"\x0f\x22\xc0", b"\x0f\x20\xc0"
MOV_CR2_RAX = b"\x0f\x22\xd0"
MOV_CR3_RAX, MOV_RAX_CR3 = b"\x0f\x22\xd8", b"\x0f\x20\xd8"
MOV_CR4_RAX, MOV_CR8_RAX, MOV_RAX_CR8 = b"\x0f\x22\xe0", b"\x44\x0f\x22\xc0", b"\x44\x0f\x20\xc0"


@pytest.fixture
def machine() -> LongMode:
    return LongMode()


@pytest.mark.parametrize("code", [MOV_CR0_RAX, MOV_RAX_CR0, MOV_CR3_RAX, MOV_CR4_RAX, MOV_CR8_RAX])
def test_control_registers_are_for_cpl_0(machine: LongMode, code: bytes) -> None:
    machine.user(code).step()
    assert (machine.vector, machine.frame(True).error_code) == (GP, 0)


@pytest.mark.parametrize("number", [1, 5, 6, 7])
def test_the_others_do_not_exist(machine: LongMode, number: int) -> None:
    machine.user(bytes([0x0F, 0x20, 0xC0 | number << 3])).step()
    assert machine.vector == UD


def test_they_read_back(machine: LongMode) -> None:
    machine.kernel(MOV_RAX_CR3).step()
    assert machine.state.rax == machine.tables.root
    machine.kernel(MOV_CR2_RAX + MOV_CR8_RAX + MOV_RAX_CR8, rax=7).step(3)
    assert (machine.state.cr2, machine.state.cr8, machine.state.rax) == (7, 7, 7)
    machine.kernel(MOV_CR8_RAX, rax=0x10).step()
    assert machine.vector == GP


@pytest.mark.parametrize(
    "cr0", [CR0_PG, CR0_PE | CR0_PG | 1 << 29, 1 << 32 | CR0_PE | CR0_PG, CR0_PE]
)
def test_cr0_refuses_what_cannot_be(machine: LongMode, cr0: int) -> None:
    machine.kernel(MOV_CR0_RAX, rax=cr0).step()
    assert (machine.vector, machine.frame(True).error_code) == (GP, 0)


@pytest.mark.parametrize(
    "cr4", [0, CR4_PAE | 1 << 15, CR4_PAE | CR4_LA57, CR4_PAE | CR4_PCIDE, CR4_PAE | 1 << 40]
)
def test_cr4_refuses_what_cannot_be(machine: LongMode, cr4: int) -> None:
    machine.kernel(MOV_CR4_RAX, rax=cr4).step()
    assert machine.vector == GP


def test_paging_may_not_change_its_depth_in_long_mode() -> None:
    machine = LongMode("max")
    machine.kernel(MOV_CR4_RAX, rax=CR4_PAE | CR4_LA57).step()
    assert machine.vector == GP


def test_smep_takes_effect_at_once(machine: LongMode) -> None:
    machine.tables.map(KERNEL & ~0x1FFFFF, 0, FLAT, level=2)  # the kernel's own code: user's
    machine.kernel(MOV_CR4_RAX + b"\x90", rax=machine.state.cr4 | CR4_SMEP)
    machine.core.memory.flush()
    machine.step(1)
    machine.step(1)
    frame = machine.frame(has_error_code=True)
    assert (machine.vector, machine.state.cr2, frame.error_code) == (PF, KERNEL + 3, 0x11)


def test_loading_cr3_forgets_translations(machine: LongMode) -> None:
    # mov rbx, [rcx]; mov cr3, rax; mov rbx, [rcx]
    code = b"\x48\x8b\x19" + MOV_CR3_RAX + b"\x48\x8b\x19"
    machine.kernel(code, rcx=DATA, rax=machine.tables.root)
    machine.set_word(0x42000, 0x11)
    machine.set_word(0x43000, 0x22)
    machine.step()
    machine.tables.map(DATA, 0x43000, FLAT)
    assert machine.state.rbx == 0x11
    machine.step(2)
    assert machine.state.rbx == 0x22


def test_invlpg_forgets_one_page(machine: LongMode) -> None:
    # mov rbx, [rcx]; invlpg [rcx + 0x1000]; mov rbx, [rcx]; invlpg [rcx]; mov rbx, [rcx]
    load = b"\x48\x8b\x19"
    code = load + b"\x0f\x01\xb9\x00\x10\x00\x00" + load + b"\x0f\x01\x39" + load
    machine.kernel(code, rcx=DATA)
    machine.core.memory.flush()
    machine.set_word(0x42000, 0x11)
    machine.set_word(0x43000, 0x22)
    machine.step()
    machine.tables.map(DATA, 0x43000, FLAT)
    machine.step(4)
    assert machine.state.rbx == 0x22
    machine.user(b"\x0f\x01\x39").step()
    assert machine.vector == GP


def test_the_machine_status_word(machine: LongMode) -> None:
    machine.kernel(b"\x0f\x01\xf0", rax=CR0_TS).step()  # lmsw ax: sets TS, cannot clear PE
    assert machine.state.cr0 & 0xF == CR0_TS | CR0_PE
    machine.kernel(b"\x0f\x06" + b"\x0f\x01\xe0").step(2)  # clts; smsw eax
    assert machine.state.rax == machine.state.cr0 & 0xFFFFFFFF
    assert not machine.state.cr0 & CR0_TS


def test_umip_hides_tables_from_users() -> None:
    machine = LongMode("max")
    smsw, sgdt = b"\x0f\x01\xe0", b"\x0f\x01\x01"
    machine.user(smsw + sgdt, rcx=DATA).step(2)
    assert machine.vector is None
    assert machine.word(0x42000, 2) == 0x3F
    machine.state.cr4 |= CR4_UMIP
    for code in (smsw, sgdt):
        machine.user(code, rcx=DATA).step()
        assert (machine.vector, machine.frame(True).error_code) == (GP, 0)


def test_leaving_long_mode_needs_32_bit_code(machine: LongMode) -> None:
    machine.kernel(MOV_CR0_RAX, rax=CR0_PE).step()
    assert machine.vector == GP
    assert machine.state.efer & EFER_LMA


def test_xsetbv_takes_only_what_there_is(machine: LongMode) -> None:
    xsetbv = b"\x0f\x01\xd1"
    machine.kernel(xsetbv, rax=3, rcx=0, rdx=0).step()
    assert machine.state.xcr0 == 3
    for words in ({"rax": 7}, {"rax": 2}, {"rax": 3, "rcx": 1}, {"rax": 3, "rdx": 1}):
        machine.kernel(xsetbv, **({"rcx": 0, "rdx": 0} | words)).step()
        assert machine.vector == GP
    machine.user(b"\x0f\x01\xd0", rcx=0).step()  # xgetbv
    assert (machine.state.rax, machine.state.rdx) == (3, 0)
