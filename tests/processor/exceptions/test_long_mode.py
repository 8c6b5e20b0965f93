"""Delivery in long mode: frames, stacks, flags, gates that are not right, #DF and shutdown."""

from __future__ import annotations

from typing import Any

import pytest

from tests.processor.long_mode import (
    DATA,
    GDT,
    HANDLER,
    IST_TOP,
    KERNEL_CS,
    KERNEL_SS,
    STACK_TOP,
    TASK,
    USER,
    USER32_CS,
    USER_CS,
    USER_PHYSICAL,
    USER_SS,
    USER_STACK,
    LongMode,
)
from trapline.arch import descriptor as d
from trapline.arch.paging import PTE_P, PTE_W
from trapline.arch.registers import RFLAGS_IF, RFLAGS_RF, RFLAGS_TF
from trapline.processor.exceptions import deliver, inject
from trapline.processor.guest import EXTERNAL_INTERRUPT

UD2, INT3, NOP = b"\x0f\x0b", b"\xcc", b"\x90"
DE, DB, BP, UD, DF, TS, NP, SS, GP, PF = 0, 1, 3, 6, 8, 10, 11, 12, 13, 14


@pytest.fixture
def machine() -> LongMode:
    return LongMode()


def test_a_fault_at_cpl_3_goes_to_the_ring_0_stack(machine: LongMode) -> None:
    machine.user(UD2).step()
    state, frame = machine.state, machine.frame()
    assert (machine.vector, state.cpl, state.cs_selector, state.ss_selector) == (
        UD,
        0,
        KERNEL_CS,
        0,
    )
    assert state.rsp == STACK_TOP - 40
    assert (frame.rip, frame.cs, frame.rsp, frame.ss) == (USER, USER_CS, USER_STACK, USER_SS)
    assert frame.rflags == RFLAGS_RF | 2  # a fault pushes RF as 1


def test_a_fault_at_cpl_0_stays_on_its_stack_aligned(machine: LongMode) -> None:
    machine.kernel(UD2, rsp=STACK_TOP - 0x105).step()
    frame = machine.frame()
    assert machine.state.rsp == (STACK_TOP - 0x105 & ~0xF) - 40
    assert machine.state.ss_selector == KERNEL_SS
    assert (frame.rsp, frame.ss, frame.cs) == (STACK_TOP - 0x105, KERNEL_SS, KERNEL_CS)


def test_an_interrupt_stack_is_used_at_any_cpl(machine: LongMode) -> None:
    machine.gate(UD, interrupt_stack=1)
    machine.kernel(UD2).step()
    assert machine.state.rsp == IST_TOP - 40
    assert machine.frame().rsp == STACK_TOP - 0x1000


@pytest.mark.parametrize(("kind", "kept"), [(0xE, 0), (0xF, RFLAGS_IF)])
def test_flags_are_cleared_by_the_kind_of_gate(machine: LongMode, kind: int, kept: int) -> None:
    machine.gate(UD, type=kind)
    machine.user(UD2, system_flags=2 | RFLAGS_IF | RFLAGS_TF | 1 << 14 | 1 << 18 | 3 << 12)
    machine.step()
    assert machine.state.rflags == 2 | kept | 1 << 18 | 3 << 12
    assert (
        machine.frame().rflags
        == 2 | RFLAGS_IF | RFLAGS_TF | 1 << 14 | 1 << 18 | 3 << 12 | RFLAGS_RF
    )


def test_an_error_code_is_pushed_last(machine: LongMode) -> None:
    # mov rax, [rcx]
    machine.user(b"\x48\x8b\x01", rcx=0x700000).step()
    frame = machine.frame(has_error_code=True)
    assert (machine.vector, frame.error_code, frame.rip) == (PF, 4, USER)
    assert machine.state.cr2 == 0x700000
    assert machine.state.rsp == STACK_TOP - 48


def test_int3_saves_the_next_instruction(machine: LongMode) -> None:
    machine.user(INT3).step()
    assert (machine.vector, machine.frame().rip, machine.frame().rflags) == (BP, USER + 1, 2)


def test_int_n_needs_a_gate_open_to_its_cpl(machine: LongMode) -> None:
    machine.user(b"\xcd\x80").step()
    assert (machine.vector, machine.frame().rip) == (0x80, USER + 2)
    machine.gate(0x80, dpl=0)
    machine.user(b"\xcd\x80").step()
    frame = machine.frame(has_error_code=True)
    assert (machine.vector, frame.error_code, frame.rip) == (GP, 0x80 * 8 + 2, USER)


def test_a_hardware_exception_does_not_look_at_the_gates_dpl(machine: LongMode) -> None:
    machine.gate(UD, dpl=0)
    machine.user(UD2).step()
    assert machine.vector == UD


@pytest.mark.parametrize(
    ("changes", "vector", "code"),
    [
        ({"is_present": False}, NP, UD * 8 + 3),
        ({"type": 0xC}, GP, UD * 8 + 3),
        ({"selector": 0}, GP, 1),
        ({"selector": KERNEL_SS}, GP, KERNEL_SS + 1),
        ({"selector": USER32_CS & ~3}, GP, (USER32_CS & ~3) + 1),
        ({"selector": 0x1000}, GP, 0x1001),
    ],
)
def test_a_bad_gate_faults_with_ext(
    machine: LongMode, changes: dict[str, Any], vector: int, code: int
) -> None:
    machine.gate(UD, **changes)
    machine.user(UD2).step()
    frame = machine.frame(has_error_code=True)
    assert (machine.vector, frame.error_code, frame.rip) == (vector, code, USER)


def test_a_code_segment_that_is_absent_faults_with_its_selector(machine: LongMode) -> None:
    machine.set_word(GDT + 0x18, machine.word(GDT + KERNEL_CS) & ~(1 << 47))
    machine.gate(UD, selector=0x18)
    machine.user(UD2).step()
    assert (machine.vector, machine.frame(True).error_code) == (NP, 0x19)


def test_a_vector_beyond_the_table_faults(machine: LongMode) -> None:
    machine.state.idtr_limit = 0x80 * 16 - 2
    machine.user(b"\xcd\x80").step()
    assert (machine.vector, machine.frame(True).error_code) == (GP, 0x80 * 8 + 2)


def test_a_page_fault_on_the_way_becomes_a_double_fault_after_a_page_fault(
    machine: LongMode,
) -> None:
    machine.set_word(TASK + 4, DATA - 0x1000_0000 & (1 << 64) - 1)  # RSP0 leads nowhere
    machine.gate(DF, interrupt_stack=1)
    machine.user(b"\x48\x8b\x01", rcx=0x700000).step()
    frame = machine.frame(has_error_code=True)
    assert (machine.vector, frame.error_code, frame.rip) == (DF, 0, USER)
    assert machine.state.rsp == IST_TOP - 48


def test_a_page_fault_on_the_way_of_a_benign_exception_is_delivered(machine: LongMode) -> None:
    machine.gate(PF, interrupt_stack=1)
    machine.set_word(TASK + 4, 0x7000_0000)
    machine.user(UD2).step()
    frame = machine.frame(has_error_code=True)
    assert (machine.vector, frame.error_code, frame.rip) == (PF, 2, USER)
    assert machine.state.cr2 == 0x7000_0000 - 40


def test_a_third_fault_shuts_the_processor_down(machine: LongMode) -> None:
    machine.state.idtr_limit = 0
    machine.user(UD2).step()
    assert machine.state.activity == 2
    assert (machine.state.rip, machine.state.cpl) == (USER, 3)


def test_a_tss_without_the_stack_is_invalid(machine: LongMode) -> None:
    machine.state.tr_limit = 42  # IST1 would end at 43
    machine.gate(UD, interrupt_stack=1)
    machine.kernel(UD2).step()
    assert (machine.vector, machine.frame(True).error_code) == (TS, 0x31)


def test_a_stack_that_is_not_canonical_is_a_stack_fault(machine: LongMode) -> None:
    machine.set_word(TASK + 4, 0x8000_0000_0000_0000)
    machine.gate(SS, interrupt_stack=1)
    machine.user(UD2).step()
    assert (machine.vector, machine.frame(True).error_code) == (SS, 1)


def test_an_interrupt_pushes_flags_as_they_are(machine: LongMode) -> None:
    machine.user(NOP, system_flags=2 | RFLAGS_IF)
    deliver(machine.core, 0x21, kind=EXTERNAL_INTERRUPT)
    assert (machine.vector, machine.frame().rflags) == (0x21, 2 | RFLAGS_IF)


def test_an_injected_page_fault_leaves_cr2_alone(machine: LongMode) -> None:
    machine.user(NOP, cr2=0x1234)
    inject(machine.core, PF, 6)
    assert (machine.vector, machine.frame(True).error_code) == (PF, 6)
    assert (machine.state.cr2, machine.frame(True).rflags) == (0x1234, 2)


@pytest.mark.parametrize("model, upper", [("zen5", 0xFFFF_8000_0000_0000), ("sapphire-rapids", 0)])
@pytest.mark.parametrize("code, size", [("48 cf", 8), ("cf", 4), ("48 cb", 8), ("cb", 4)])
def test_a_return_to_a_16_bit_stack_replaces_16_bits_of_rsp(
    model: str, upper: int, code: str, size: int
) -> None:
    """Linux, espfix_64.c: the other bits of the kernel's RSP are seen in ring 3."""
    kernel_stack = 0xFFFF_8000_ABCD_0000
    machine = LongMode(model)
    machine.tables.map(kernel_stack, STACK_TOP, PTE_P | PTE_W)
    machine.state.gdtr_limit = 0x4F
    machine.set_word(GDT + 0x40, d.build_segment(0, 0xFFFF, d.with_dpl(d.AR_DATA16, 3)))
    flags = [0x202] if code.endswith("cf") else []
    for position, word in enumerate([USER, USER32_CS, *flags, 0x1234_5800, 0x43]):
        machine.set_word(STACK_TOP + size * position, word, size)
    machine.kernel(bytes.fromhex(code), rsp=kernel_stack).step()
    state = machine.state
    assert (state.rip, state.cs_selector, state.ss_selector) == (USER, USER32_CS, 0x43)
    assert state.rsp == upper | 0xABCD_5800


@pytest.mark.parametrize("engine", ["interp", "jit"])
@pytest.mark.parametrize("code, size", [("48 cf", 8), ("48 cb", 8)])
def test_a_return_to_64_bit_code_replaces_rsp_whatever_the_stack_segment(
    engine: str, code: str, size: int
) -> None:
    machine = LongMode(engine=engine)
    machine.state.gdtr_limit = 0x4F
    machine.set_word(GDT + 0x40, d.build_segment(0, 0xFFFF, d.with_dpl(d.AR_DATA16, 3)))
    machine.bus.bytes[USER_PHYSICAL] = 0xCC
    flags = [0x202] if code.endswith("cf") else []
    for position, word in enumerate([USER, USER_CS, *flags, USER_STACK, 0x43]):
        machine.set_word(STACK_TOP + size * position, word, size)
    machine.kernel(bytes.fromhex(code), rsp=STACK_TOP).core.run()
    assert (machine.vector, machine.frame().rsp, machine.frame().ss) == (BP, USER_STACK, 0x43)


def test_iretq_returns_to_where_the_frame_says(machine: LongMode) -> None:
    machine.user(INT3 + NOP).step()
    machine.bus.bytes[HANDLER + 16 * BP : HANDLER + 16 * BP + 2] = b"\x48\xcf"
    machine.state.nmi_blocked = 1
    machine.step()
    state = machine.state
    assert (state.rip, state.cpl, state.cs_selector, state.rsp) == (
        USER + 1,
        3,
        USER_CS,
        USER_STACK,
    )
    assert (state.ss_selector, state.nmi_blocked, state.rflags) == (USER_SS, 0, 2)
    machine.step()
    assert state.rip == USER + 2
