"""Segment registers and descriptor tables: loading, checking, asking about descriptors."""

from __future__ import annotations

import pytest

from tests.processor.protected import (
    CODE,
    CODE0,
    CODE3,
    CONFORMING,
    DATA,
    DATA0,
    DATA3,
    DESCRIPTORS,
    GDT,
    LDT,
    LDT_SELECTOR,
    STACK_TOP,
    TASK_A,
    TASK_B,
    Protected,
)
from trapline.arch import descriptor as d
from trapline.arch.registers import RFLAGS_ZF

NP, SS, GP, UD = 11, 12, 13, 6
MOV_DS_AX, MOV_SS_AX, MOV_CS_AX, MOV_EAX_DS = b"\x8e\xd8", b"\x8e\xd0", b"\x8e\xc8", b"\x8c\xd8"


@pytest.fixture
def machine() -> Protected:
    return Protected()


def test_a_data_segment_loads_its_descriptor(machine: Protected) -> None:
    machine.set_word(GDT + 0x58, d.build_segment(0x12340, 0x55FFF, d.AR_DATA32 & ~1))
    machine.ring(0, MOV_DS_AX + MOV_EAX_DS, rax=0x58).step(2)
    state = machine.state
    assert (state.ds_base, state.ds_limit, state.rax) == (0x12340, 0x55FFF, 0x58)
    assert machine.word(GDT + 0x58) >> 40 & 1  # accessed


@pytest.mark.parametrize(
    ("cpl", "code", "selector", "vector", "error_code"),
    [
        (3, MOV_DS_AX, DATA0, GP, DATA0),
        (0, MOV_DS_AX, TASK_B, GP, TASK_B),
        (0, MOV_DS_AX, 0x1000, GP, 0x1000),
        (0, MOV_DS_AX, 0x74, GP, 0x74),
        (0, MOV_SS_AX, 0, GP, 0),
        (0, MOV_SS_AX, DATA3, GP, DATA3 & ~3),
        (0, MOV_SS_AX, DATA0 | 1, GP, DATA0),
        (0, MOV_SS_AX, CODE0, GP, CODE0),
    ],
)
def test_loads_are_checked(
    machine: Protected, cpl: int, code: bytes, selector: int, vector: int, error_code: int
) -> None:
    machine.ring(cpl, code, rax=selector).step()
    assert (machine.vector, machine.stacked(2)) == (vector, [error_code, CODE])


def test_absent_segments_fault_by_register(machine: Protected) -> None:
    machine.set_word(GDT + 0x58, DESCRIPTORS[DATA0] & ~(1 << 47))
    machine.ring(0, MOV_DS_AX, rax=0x58).step()
    assert (machine.vector, machine.stacked(1)) == (NP, [0x58])
    machine.ring(0, MOV_SS_AX, rax=0x58).step()
    assert (machine.vector, machine.stacked(1)) == (SS, [0x58])


def test_a_null_segment_may_be_loaded_but_not_used(machine: Protected) -> None:
    machine.ring(0, MOV_DS_AX + b"\x8b\x01", rax=0, rcx=DATA).step()
    assert machine.state.ds_attributes & d.AR_UNUSABLE
    machine.step()
    assert (machine.vector, machine.stacked(2)) == (GP, [0, CODE + 2])


def test_cs_cannot_be_moved_to(machine: Protected) -> None:
    machine.ring(0, MOV_CS_AX).step()
    assert machine.vector == UD


@pytest.mark.parametrize(
    ("rights", "limit", "offset", "is_write", "vector"),
    [
        (d.AR_DATA32, 0xFFF, 0xFFC, True, None),
        (d.AR_DATA32, 0xFFF, 0xFFD, False, GP),
        (d.AR_DATA32 & ~d.TYPE_WRITABLE, 0xFFF, 0, True, GP),
        (d.AR_DATA32 & ~d.TYPE_WRITABLE, 0xFFF, 0, False, None),
        (d.AR_CODE32, 0xFFF, 0, False, None),
        (d.AR_CODE32, 0xFFF, 0, True, GP),
        (d.AR_DATA32 | d.TYPE_EXPAND_DOWN, 0xFFF, 0x1000, True, None),
        (d.AR_DATA32 | d.TYPE_EXPAND_DOWN, 0xFFF, 0xFFF, True, GP),
        (d.AR_DATA16 | d.TYPE_EXPAND_DOWN, 0xFFF, 0xFFFD, True, GP),
    ],
)
def test_limits_and_types_are_checked_on_access(
    machine: Protected, rights: int, limit: int, offset: int, is_write: bool, vector: int | None
) -> None:
    machine.set_word(GDT + 0x58, d.build_segment(DATA, limit, rights & ~d.AR_G))
    code = MOV_DS_AX + (b"\x89\x01" if is_write else b"\x8b\x01")
    machine.ring(0, code, rax=0x58, rcx=offset).step(2)
    assert machine.vector == vector
    assert machine.state.rip == (CODE + 4 if vector is None else machine.state.rip)


def test_pop_loads_and_then_moves_the_stack(machine: Protected) -> None:
    machine.ring(0, b"\x1f")  # pop ds
    machine.set_word(machine.state.rsp, 0xFFFF_0000 | DATA0, 4)
    machine.step()
    assert (machine.state.ds_selector, machine.state.rsp) == (DATA0, STACK_TOP - 0x1000 + 4)
    machine.ring(0, b"\x1f")
    machine.set_word(machine.state.rsp, 0x1000, 4)
    machine.step()
    assert (machine.vector, machine.state.rsp) == (GP, STACK_TOP - 0x1000 - 16)


def test_the_local_descriptor_table(machine: Protected) -> None:
    machine.ring(0, b"\x0f\x00\xd1" + b"\x0f\x00\xc3" + MOV_DS_AX, rcx=LDT_SELECTOR, rax=0x0C)
    machine.set_word(LDT + 8, d.build_segment(0x777000, 0xFFF, d.AR_DATA32 & ~d.AR_G))
    machine.step(3)  # lldt cx; sldt ebx; mov ds, ax
    assert (machine.state.rbx, machine.state.ds_base) == (LDT_SELECTOR, 0x777000)
    machine.ring(0, MOV_DS_AX, rax=0x14).step()
    assert (machine.vector, machine.stacked(1)) == (GP, [0x14])
    machine.ring(0, b"\x0f\x00\xd1", rcx=DATA0).step()
    assert (machine.vector, machine.stacked(1)) == (GP, [DATA0])


def test_ltr_makes_the_task_busy(machine: Protected) -> None:
    machine.ring(3, b"\x0f\x00\xd9", rcx=TASK_B).step()
    assert (machine.vector, machine.stacked(1)) == (GP, [0])
    machine.ring(0, b"\x0f\x00\xd9" + b"\x0f\x00\xcb", rcx=TASK_B).step(2)  # ltr cx; str ebx
    assert (machine.state.rbx, machine.state.tr_attributes & 0xF) == (TASK_B, 11)
    assert machine.word(GDT + TASK_B) >> 40 & 0xF == 11
    machine.ring(0, b"\x0f\x00\xd9", rcx=TASK_A).step()
    assert (machine.vector, machine.stacked(1)) == (GP, [TASK_A])


def test_table_registers_are_stored_and_loaded(machine: Protected) -> None:
    # sgdt [ecx]; lidt [ecx]
    machine.ring(0, b"\x0f\x01\x01" + b"\x0f\x01\x19", rcx=DATA).step(2)
    assert machine.word(DATA, 6) == 0x6F | GDT << 16
    assert (machine.state.idtr_base, machine.state.idtr_limit) == (GDT, 0x6F)


def test_these_need_protected_mode(machine: Protected) -> None:
    for code in (
        b"\x0f\x00\xc0",
        b"\x0f\x00\xc8",
        b"\x0f\x00\xd0",
        b"\x0f\x00\xe0",
        b"\x0f\x02\xc0",
    ):
        machine.real(code).step()
        assert machine.vector == UD


@pytest.mark.parametrize(
    ("cpl", "selector", "readable", "writable"),
    [
        (0, DATA0, True, True),
        (3, DATA0, False, False),
        (3, DATA3, True, True),
        (3, CODE3, True, False),
        (3, CONFORMING, True, False),
        (0, TASK_A, False, False),
        (0, 0, False, False),
        (0, 0x1000, False, False),
    ],
)
def test_verr_and_verw(
    machine: Protected, cpl: int, selector: int, readable: bool, writable: bool
) -> None:
    for code, expected in ((b"\x0f\x00\xe0", readable), (b"\x0f\x00\xe8", writable)):
        machine.ring(cpl, code, rax=selector).step()
        assert bool(machine.state.rflags & RFLAGS_ZF) == expected


def test_lar_and_lsl(machine: Protected) -> None:
    lar, lsl = b"\x0f\x02\xc1", b"\x0f\x03\xc1"
    machine.ring(0, lar, rcx=DATA3, rax=0).step()
    assert machine.state.rax == 0x00CFF300 & 0x00F0FF00
    assert machine.state.rflags & RFLAGS_ZF
    machine.ring(0, lsl, rcx=DATA3).step()
    assert machine.state.rax == 0xFFFFFFFF
    machine.ring(0, lsl, rcx=TASK_A).step()
    assert machine.state.rax == 0x67
    machine.ring(3, lar, rcx=DATA0, rax=5).step()
    assert (machine.state.rax, machine.state.rflags & RFLAGS_ZF) == (5, 0)


def test_arpl_raises_a_privilege(machine: Protected) -> None:
    machine.ring(3, b"\x63\xc8", rax=DATA0, rcx=3).step()
    assert (machine.state.rax, bool(machine.state.rflags & RFLAGS_ZF)) == (DATA0 | 3, True)
    machine.ring(3, b"\x63\xc8", rax=DATA0 | 3, rcx=1).step()
    assert (machine.state.rax, bool(machine.state.rflags & RFLAGS_ZF)) == (DATA0 | 3, False)
