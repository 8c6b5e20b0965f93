"""Delivery outside long mode: 32- and 16-bit gates, ring changes, virtual-8086 and real mode."""

from __future__ import annotations

import pytest

from tests.processor.protected import (
    CODE,
    CODE0,
    CODE3,
    CODE16,
    CONFORMING,
    DATA,
    DATA0,
    DATA3,
    HANDLER,
    STACK_TOP,
    TASK,
    USER_STACK,
    Protected,
)
from trapline.arch.descriptor import AR_UNUSABLE
from trapline.arch.registers import RFLAGS_IF, RFLAGS_IOPL, RFLAGS_RF, RFLAGS_TF, RFLAGS_VM
from trapline.processor.exceptions import deliver
from trapline.processor.guest import EXTERNAL_INTERRUPT

UD2, INT_80, IRET = b"\x0f\x0b", b"\xcd\x80", b"\xcf"
DB, UD, DF, TS, NP, SS, GP = 1, 6, 8, 10, 11, 12, 13


@pytest.fixture
def machine() -> Protected:
    return Protected()


def test_the_same_ring_keeps_its_stack(machine: Protected) -> None:
    machine.ring(0, UD2).step()
    assert (machine.vector, machine.state.rsp) == (UD, STACK_TOP - 0x1000 - 12)
    assert machine.stacked(3) == [CODE, CODE0, 2 | RFLAGS_RF]


def test_an_inner_ring_has_the_tasks_stack(machine: Protected) -> None:
    machine.ring(3, UD2, system_flags=2 | RFLAGS_IF).step()
    assert (machine.vector, machine.state.cpl, machine.state.ss_selector) == (UD, 0, DATA0)
    assert machine.state.rsp == STACK_TOP - 20
    flags = 2 | RFLAGS_IF | RFLAGS_RF
    assert machine.stacked(5) == [CODE, CODE3, flags, USER_STACK, DATA3]
    assert machine.state.rflags == 2


def test_an_error_code_lies_on_top(machine: Protected) -> None:
    machine.ring(3, b"\xf4").step()  # hlt
    assert machine.vector == GP
    assert machine.stacked(3) == [0, CODE, CODE3]


def test_iret_goes_back_out(machine: Protected) -> None:
    machine.bus.bytes[HANDLER + 16 * 0x80] = 0xCF
    machine.ring(3, INT_80, system_flags=2 | RFLAGS_IF).step(2)
    state = machine.state
    assert (state.rip, state.cpl, state.rsp) == (CODE + 2, 3, USER_STACK)
    assert (state.cs_selector, state.ss_selector, state.rflags) == (CODE3, DATA3, 2 | RFLAGS_IF)


def test_going_out_takes_away_inner_segments(machine: Protected) -> None:
    machine.bus.bytes[HANDLER + 16 * 0x80] = 0xCF
    machine.ring(3, INT_80).step()
    machine.state.ds_selector, machine.state.ds_attributes = DATA0, machine.state.ss_attributes
    machine.step()
    assert machine.state.ds_attributes & AR_UNUSABLE and machine.state.ds_selector == 0
    assert machine.state.es_selector == DATA3


def test_a_16_bit_gate_pushes_words(machine: Protected) -> None:
    machine.gate(0x80, type=6, offset=HANDLER + 16 * 0x80)
    machine.ring(0, INT_80).step()
    assert (machine.vector, machine.state.rsp) == (0x80, STACK_TOP - 0x1000 - 6)
    assert machine.stacked(3, 2) == [CODE + 2, CODE0, 2]


def test_a_conforming_handler_stays_in_the_ring(machine: Protected) -> None:
    machine.gate(0x80, selector=CONFORMING)
    machine.ring(3, INT_80).step()
    assert (machine.vector, machine.state.cpl, machine.state.cs_selector) == (
        0x80,
        3,
        CONFORMING | 3,
    )
    assert machine.state.rsp == USER_STACK - 12


@pytest.mark.parametrize(
    ("stack", "vector", "code"), [(0, TS, 0), (0x1000, TS, 0x1000), (CODE0, TS, CODE0)]
)
def test_a_bad_inner_stack_is_an_invalid_tss(
    machine: Protected, stack: int, vector: int, code: int
) -> None:
    machine.set_word(TASK + 8, stack, 2)
    machine.gate(TS, selector=CONFORMING)  # in ring 3, so that it can be delivered
    machine.ring(3, INT_80).step()
    assert (machine.vector, machine.stacked(1)[0]) == (vector, code)


def test_int_n_needs_a_gate_open_to_its_ring(machine: Protected) -> None:
    machine.gate(0x80, dpl=0)
    machine.ring(3, INT_80).step()
    assert (machine.vector, machine.stacked(1)) == (GP, [0x80 * 8 + 2])


def test_leaving_virtual_8086_mode_saves_its_segments(machine: Protected) -> None:
    machine.virtual_8086(UD2).step()
    state, paragraph = machine.state, DATA >> 4
    assert (machine.vector, state.cpl, state.system_flags & RFLAGS_VM) == (UD, 0, 0)
    assert machine.stacked(9) == [
        0, CODE >> 4, 2 | RFLAGS_VM | RFLAGS_RF, 0x800, paragraph, *[paragraph] * 4,
    ]  # fmt: skip
    assert all(
        getattr(state, f"{name}_attributes") & AR_UNUSABLE for name in ("ds", "es", "fs", "gs")
    )


def test_iret_to_virtual_8086_mode_and_back(machine: Protected) -> None:
    machine.bus.bytes[HANDLER + 16 * UD] = 0xCF
    machine.virtual_8086(UD2).step(2)
    state = machine.state
    assert (state.rip, state.cpl, state.cs_base, state.rsp) == (0, 3, CODE, 0x800)
    assert state.system_flags & RFLAGS_VM
    assert (state.ds_base, state.ds_limit, state.ds_attributes) == (DATA, 0xFFFF, 0xF3)


def test_int_n_in_virtual_8086_mode_needs_iopl_3(machine: Protected) -> None:
    machine.virtual_8086(INT_80).step()
    assert (machine.vector, machine.stacked(1)) == (GP, [0])
    machine.virtual_8086(INT_80, system_flags=2 | RFLAGS_VM | RFLAGS_IOPL).step()
    assert (machine.vector, machine.stacked(1)) == (0x80, [2])


def test_a_handler_in_ring_3_cannot_take_virtual_8086_mode(machine: Protected) -> None:
    machine.gate(0x80, selector=CODE3 & ~3)
    machine.virtual_8086(INT_80, system_flags=2 | RFLAGS_VM | RFLAGS_IOPL).step()
    assert (machine.vector, machine.stacked(1)) == (GP, [CODE3 & ~3])


def test_real_mode_uses_the_vector_table(machine: Protected) -> None:
    machine.real(INT_80, system_flags=2 | RFLAGS_IF | RFLAGS_TF).step()
    assert (machine.vector, machine.state.cs_base, machine.state.rsp) == (0x80, 0, 0x800 - 6)
    assert machine.stacked(3, 2) == [2, CODE >> 4, 2 | RFLAGS_IF | RFLAGS_TF]
    assert machine.state.rflags == 2


def test_real_mode_pushes_no_error_code_and_returns(machine: Protected) -> None:
    machine.bus.bytes[HANDLER + UD] = 0xCF
    machine.real(UD2, rsp=2).step()
    assert machine.state.rsp == 0xFFFC  # the stack wraps round
    machine.step()
    assert (machine.state.rip, machine.state.cs_selector, machine.state.rsp) == (0, CODE >> 4, 2)


def test_a_real_mode_table_that_is_too_short_shuts_down(machine: Protected) -> None:
    machine.real(UD2, idtr_limit=3).step()
    assert machine.state.activity == 2


def test_a_bus_lock_in_virtual_8086_mode_traps(machine: Protected) -> None:
    machine.core.msrs.write(0x1D9, 4)
    machine.virtual_8086(b"\xf0\xff\x06\x3e\x00").step()  # lock inc word [0x3e]: one line
    assert machine.vector is None
    machine.virtual_8086(b"\xf0\xff\x06\x3f\x00").step(2)
    assert (machine.state.dr6, machine.state.rip) == (0xFFFF07F0, HANDLER + 16 * DB + 1)
    assert machine.stacked(1) == [5]


def test_real_mode_is_cpl_0_and_silent(machine: Protected) -> None:
    machine.core.msrs.write(0x1D9, 4)
    machine.real(b"\xf0\xff\x06\x3f\x00\xf4").step(2)
    assert machine.state.activity == 1
    assert [lock.cpl for lock, _ in machine.observer.locks] == [0]


@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_a_bus_lock_in_32_bit_code_traps(engine: str) -> None:
    machine = Protected(engine=engine)
    machine.core.msrs.write(0x1D9, 4)
    machine.ring(3, b"\x90\xf0\xff\x01\x90", rcx=DATA + 0x3D).core.run()  # nop; lock inc [ecx]
    assert (machine.state.rip, machine.state.dr6) == (HANDLER + 16 * DB + 1, 0xFFFF07F0)
    assert machine.stacked(1) == [CODE + 4]


def test_an_interrupt_in_16_bit_code(machine: Protected) -> None:
    machine.ring(0, b"\x90", system_flags=2 | RFLAGS_IF)
    machine.state.cs_selector = CODE16
    deliver(machine.core, 0x21, kind=EXTERNAL_INTERRUPT)
    assert (machine.vector, machine.stacked(2)) == (0x21, [CODE, CODE16])


def test_an_absent_gate_is_not_present(machine: Protected) -> None:
    machine.gate(0x80, is_present=False)
    machine.ring(0, INT_80).step()
    assert (machine.vector, machine.stacked(1)) == (NP, [0x80 * 8 + 2])


def test_contributory_exceptions_in_a_row_make_a_double_fault(machine: Protected) -> None:
    machine.gate(GP, is_present=False)
    machine.ring(0, INT_80)
    machine.gate(0x80, type=0)
    machine.step()
    assert (machine.vector, machine.stacked(2)) == (DF, [0, CODE])


def test_the_stack_segments_limit_holds(machine: Protected) -> None:
    machine.ring(0, UD2, ss_limit=0x100)
    machine.gate(SS, selector=CODE0)
    machine.step()
    assert machine.state.activity == 2  # no stack for #SS, none for #DF


def test_iret_refuses_an_inner_ring(machine: Protected) -> None:
    machine.ring(3, IRET)
    for position, word in enumerate((CODE, CODE0, 2)):
        machine.set_word(USER_STACK + 4 * position, word, 4)
    machine.step()
    assert (machine.vector, machine.stacked(1)) == (GP, [CODE0])
