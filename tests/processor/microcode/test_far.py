"""Far JMP, CALL, RET and far pointers: code segments, call gates, task switches, real mode."""

from __future__ import annotations

import struct

import pytest

from tests.processor import long_mode
from tests.processor.long_mode import LongMode
from tests.processor.protected import (
    CALL_GATE,
    CODE,
    CODE0,
    CODE3,
    CODE16,
    CONFORMING,
    DATA,
    DATA0,
    DATA3,
    DESCRIPTORS,
    GDT,
    HANDLER,
    OTHER_TASK,
    STACK_TOP,
    TASK,
    TASK_A,
    TASK_B,
    TASK_GATE,
    USER_STACK,
    Protected,
)
from trapline.arch import descriptor as d
from trapline.arch.registers import CR0_PE, CR0_TS, RFLAGS_NT, RFLAGS_VM
from trapline.processor.fault import Fault

DB = 1
TS, NP, SS, GP, UD = 10, 11, 12, 13, 6
TARGET = CODE + 0x100


@pytest.fixture
def machine() -> Protected:
    return Protected()


def far(opcode: int, selector: int, offset: int = TARGET) -> bytes:
    """JMP (EA) or CALL (9A) ptr16:32."""
    return struct.pack("<BIH", opcode, offset, selector)


JMP, CALL = 0xEA, 0x9A


def test_a_jump_to_a_code_segment_of_the_ring(machine: Protected) -> None:
    machine.ring(0, far(JMP, CODE16, 0x123)).step()
    assert (machine.state.rip, machine.state.cs_selector) == (0x123, CODE16)
    assert machine.core.code_mode == (16, 32)


@pytest.mark.parametrize(
    ("cpl", "selector", "vector", "code"),
    [
        (3, CODE0, GP, CODE0),
        (0, CODE3, GP, CODE3 & ~3),
        (0, 0, GP, 0),
        (0, DATA0, GP, DATA0),
        (0, 0x1000, GP, 0x1000),
    ],
)
def test_a_jump_elsewhere_faults(
    machine: Protected, cpl: int, selector: int, vector: int, code: int
) -> None:
    for opcode in (JMP, CALL):
        machine.ring(cpl, far(opcode, selector)).step()
        assert (machine.vector, machine.stacked(2)) == (vector, [code, CODE])


def test_absence_and_limits_of_the_target(machine: Protected) -> None:
    machine.set_word(GDT + CODE16, DESCRIPTORS[CODE16] & ~(1 << 47))
    machine.ring(0, far(JMP, CODE16)).step()
    assert (machine.vector, machine.stacked(1)) == (NP, [CODE16])
    machine.set_word(GDT + CODE16, DESCRIPTORS[CODE16])
    machine.ring(0, far(JMP, CODE16, 0x10000)).step()
    assert (machine.vector, machine.stacked(1)) == (GP, [0])


def test_a_conforming_segment_may_be_called_from_outside(machine: Protected) -> None:
    machine.ring(3, far(CALL, CONFORMING)).step()
    state = machine.state
    assert (state.rip, state.cs_selector, state.cpl) == (TARGET, CONFORMING | 3, 3)
    assert machine.stacked(2) == [CODE + 7, CODE3]


def test_loading_a_code_segment_marks_it_accessed(machine: Protected) -> None:
    fresh = DESCRIPTORS[CODE0] & ~(1 << 40)
    machine.set_word(GDT + CODE0, fresh)
    machine.ring(0, far(JMP, CODE0)).step()
    assert machine.word(GDT + CODE0) == fresh | 1 << 40


def test_call_and_return_in_one_ring(machine: Protected) -> None:
    machine.bus.bytes[TARGET : TARGET + 3] = b"\xca\x08\x00"  # retf 8
    machine.ring(0, far(CALL, CODE0)).step(2)
    assert (machine.state.rip, machine.state.rsp) == (CODE + 7, STACK_TOP - 0x1000 + 8)


def test_a_call_gate_leads_inwards_with_its_parameters(machine: Protected) -> None:
    gate = d.Gate(CODE0, TARGET, d.SystemType.CALL_GATE, 3, True, interrupt_stack=2)
    machine.set_word(GDT + (CALL_GATE & ~7), d.build_gate(gate)[0])
    machine.set_word(USER_STACK, 0x11, 4)
    machine.set_word(USER_STACK + 4, 0x22, 4)
    machine.bus.bytes[TARGET : TARGET + 3] = b"\xca\x08\x00"  # retf 8
    machine.ring(3, far(CALL, CALL_GATE, 0xDEAD)).step()
    state = machine.state
    assert (state.rip, state.cpl, state.cs_selector, state.ss_selector) == (TARGET, 0, CODE0, DATA0)
    assert machine.stacked(6) == [CODE + 7, CODE3, 0x11, 0x22, USER_STACK, DATA3]
    machine.step()
    assert (state.rip, state.cpl, state.rsp) == (CODE + 7, 3, USER_STACK + 8)
    assert (state.cs_selector, state.ss_selector) == (CODE3, DATA3)


def test_a_jump_through_a_call_gate_may_not_change_rings(machine: Protected) -> None:
    machine.ring(3, far(JMP, CALL_GATE)).step()
    assert (machine.vector, machine.stacked(1)) == (GP, [CODE0])
    machine.ring(0, far(JMP, CALL_GATE & ~3)).step()
    assert (machine.state.rip, machine.state.cs_selector) == (TARGET, CODE0)


def test_a_call_gate_is_guarded_by_its_dpl(machine: Protected) -> None:
    gate = d.Gate(CODE0, TARGET, d.SystemType.CALL_GATE, 0, True)
    machine.set_word(GDT + (CALL_GATE & ~7), d.build_gate(gate)[0])
    machine.ring(3, far(CALL, CALL_GATE)).step()
    assert (machine.vector, machine.stacked(1)) == (GP, [CALL_GATE & ~3])


def test_a_return_inwards_is_refused(machine: Protected) -> None:
    machine.ring(3, b"\xcb")
    machine.set_word(USER_STACK, TARGET, 4)
    machine.set_word(USER_STACK + 4, CODE0, 4)
    machine.step()
    assert (machine.vector, machine.stacked(1)) == (GP, [CODE0])


def test_far_pointers_load_a_segment_and_a_register(machine: Protected) -> None:
    machine.set_word(DATA, 0x1234_5678 | DATA3 << 32, 6)
    machine.ring(3, b"\xc4\x01", rcx=DATA, rax=0).step()  # les eax, [ecx]
    assert (machine.state.rax, machine.state.es_selector) == (0x12345678, DATA3)
    machine.set_word(DATA + 4, DATA0, 2)
    machine.ring(3, b"\xc4\x01", rcx=DATA).step()
    assert (machine.vector, machine.stacked(1)) == (GP, [DATA0])


def test_real_mode_far_call_and_return(machine: Protected) -> None:
    machine.bus.bytes[0x7000 + 5] = 0xCB
    machine.real(b"\x9a\x05\x00\x00\x07").step()  # call 0700:0005
    assert (machine.state.rip, machine.state.cs_base) == (5, 0x7000)
    assert machine.stacked(2, 2) == [5, CODE >> 4]
    machine.step()
    assert (machine.state.rip, machine.state.cs_base, machine.state.rsp) == (5, CODE, 0x800)


def test_from_real_mode_to_protected_mode_and_back(machine: Protected) -> None:
    # mov eax, cr0; or al, 1; mov cr0, eax; jmp CODE16:0x8100 ... mov cr0, ebx; jmp 0800:0200
    enter = bytes.fromhex("0f20c0 0c01 0f22c0 ea00814800")
    leave = bytes.fromhex("0f22c3 ea00020008")
    machine.real(enter, rbx=0)
    machine.bus.bytes[TARGET : TARGET + len(leave)] = leave
    machine.step(4)
    assert (machine.state.rip, machine.state.cs_selector, machine.state.cr0) == (
        0x8100,
        CODE16,
        0x11,
    )
    machine.step(2)
    assert (machine.state.rip, machine.state.cs_base) == (0x200, CODE)
    assert not machine.state.cr0 & CR0_PE


# -- tasks -----------------------------------------------------------------------------------------


def other_task(machine: Protected, **words: int) -> None:
    """A TSS whose task starts at TARGET in ring 0."""
    layout = {
        "eip": (0x20, TARGET), "eflags": (0x24, 2), "eax": (0x28, 0xA), "esp": (0x38, 0x18000),
        "es": (0x48, DATA0), "cs": (0x4C, CODE0), "ss": (0x50, DATA0), "ds": (0x54, DATA0),
        "fs": (0x58, 0), "gs": (0x5C, 0), "ldt": (0x60, 0), "trap": (0x64, 0),
    }  # fmt: skip
    for name, (at, word) in layout.items():
        machine.set_word(OTHER_TASK + at, words.get(name, word), 2 if name == "trap" else 4)


@pytest.mark.parametrize("selector", [TASK_B, TASK_GATE])
def test_a_jump_switches_tasks(machine: Protected, selector: int) -> None:
    other_task(machine)
    machine.ring(0, far(JMP, selector), rax=1, rbx=0xB, dr7=0x455).step()
    state = machine.state
    assert (state.rip, state.rax, state.rsp, state.cs_selector) == (TARGET, 0xA, 0x18000, CODE0)
    assert (state.tr_selector, state.tr_base) == (TASK_B, OTHER_TASK)
    assert state.cr0 & CR0_TS and state.dr7 == 0x400
    assert machine.word(TASK + 0x20, 4) == CODE + 7
    assert machine.word(TASK + 0x34, 4) == 0xB
    assert machine.word(GDT + TASK_A) >> 40 & 0xF == d.SystemType.TSS_AVAILABLE
    assert machine.word(GDT + TASK_B) >> 40 & 0xF == d.SystemType.TSS_BUSY
    assert not state.system_flags & RFLAGS_NT


def test_a_call_nests_and_iret_comes_back(machine: Protected) -> None:
    other_task(machine)
    machine.bus.bytes[TARGET] = 0xCF
    machine.ring(0, far(CALL, TASK_B), rbx=0xB).step()
    assert machine.state.system_flags & RFLAGS_NT
    assert machine.word(OTHER_TASK, 2) == TASK_A
    assert machine.word(GDT + TASK_A) >> 40 & 0xF == d.SystemType.TSS_BUSY
    machine.step()
    state = machine.state
    assert (state.rip, state.rbx, state.tr_selector) == (CODE + 7, 0xB, TASK_A)
    assert not state.system_flags & RFLAGS_NT
    assert machine.word(GDT + TASK_B) >> 40 & 0xF == d.SystemType.TSS_AVAILABLE


def test_a_task_gate_in_the_idt_takes_an_exception(machine: Protected) -> None:
    other_task(machine)
    machine.gate(GP, type=d.SystemType.TASK_GATE, selector=TASK_B)
    machine.ring(3, b"\xf4").step()
    assert (machine.state.rip, machine.state.cpl) == (TARGET, 0)
    assert machine.stacked(1) == [0]  # the error code
    assert machine.word(TASK + 0x20, 4) == CODE


@pytest.mark.parametrize("code, vector", [("f1", DB), ("cc", 3), ("ce", 4), ("cd 80", 0x80)])
def test_a_task_gate_saves_what_follows_a_software_interrupt(
    machine: Protected, code: str, vector: int
) -> None:
    """SDM 3A, "Interrupt 1": that of INT1 is a trap."""
    other_task(machine)
    machine.gate(vector, type=d.SystemType.TASK_GATE, selector=TASK_B)
    machine.ring(3, bytes.fromhex(code), system_flags=2, arithmetic_flags=1 << 11).step()
    assert (machine.state.rip, machine.state.tr_selector) == (TARGET, TASK_B)
    assert machine.word(TASK + 0x20, 4) == CODE + len(bytes.fromhex(code))


def test_the_trap_flag_of_a_task_is_reported(machine: Protected) -> None:
    other_task(machine, trap=1)
    machine.ring(0, far(JMP, TASK_B)).step(2)
    assert (machine.state.rip, machine.state.dr6) == (HANDLER + 16 + 1, 0xFFFF8FF0)
    assert machine.stacked(1) == [TARGET]


def test_a_busy_task_cannot_be_jumped_to(machine: Protected) -> None:
    machine.ring(0, far(JMP, TASK_A)).step()
    assert (machine.vector, machine.stacked(1)) == (GP, [TASK_A])


def test_a_fault_of_the_new_segments_is_the_new_tasks(machine: Protected) -> None:
    other_task(machine, ds=0x1000)
    machine.ring(0, far(JMP, TASK_B)).step()
    assert (machine.vector, machine.stacked(2)) == (TS, [0x1000, TARGET])
    assert machine.state.tr_selector == TASK_B


def test_a_fault_of_the_new_tasks_table_finds_the_segments_of_its_mode(machine: Protected) -> None:
    """A hypervisor may look at them in between."""
    other_task(machine, eflags=2 | RFLAGS_VM, ldt=0x1000, cs=0x1234)
    machine.set_word(OTHER_TASK + 4, 0x18000, 4)
    machine.set_word(OTHER_TASK + 8, DATA0, 4)
    machine.ring(0, far(JMP, TASK_B)).step()
    assert (machine.vector, machine.stacked(3)) == (TS, [0x1000, TARGET, 0x1234])


def test_a_task_without_code_keeps_the_old_tasks_until_its_fault(machine: Protected) -> None:
    other_task(machine, cs=0)
    machine.ring(0, far(JMP, TASK_B))
    before = machine.state.cs_attributes
    with pytest.raises(Fault) as fault:
        machine.core.interpret()
    assert (fault.value.vector, fault.value.error_code) == (TS, 0)
    assert (machine.state.cs_attributes, machine.state.cs_selector) == (before, 0)


def test_a_tss_that_is_too_small(machine: Protected) -> None:
    machine.set_word(GDT + TASK_B, d.build_segment(OTHER_TASK, 0x66, d.AR_P | 9))
    machine.ring(0, far(JMP, TASK_B)).step()
    assert (machine.vector, machine.stacked(2)) == (TS, [TASK_B, CODE])


# -- long mode -------------------------------------------------------------------------------------


def test_long_mode_returns_to_compatibility_mode_and_far_jumps_back() -> None:
    machine = LongMode()
    machine.kernel(b"\x48\xcb", rsp=0x12000)  # retfq
    for position, word in enumerate((long_mode.USER, 0x1B, long_mode.USER_STACK, 0x23)):
        machine.set_word(0x12000 + 8 * position, word)
    machine.step()
    state = machine.state
    assert (state.rip, state.cpl, machine.core.code_mode) == (long_mode.USER, 3, (32, 32))
    machine.user_32(far(JMP, 0x2B, long_mode.USER + 0x10)).step()
    assert (state.rip, machine.core.code_mode) == (long_mode.USER + 0x10, (64, 64))


def test_long_mode_call_gates_switch_stacks() -> None:
    machine = LongMode()
    low, high = d.build_gate(d.Gate(8, long_mode.KERNEL, d.SystemType.CALL_GATE, 3, True))
    machine.set_word(long_mode.GDT + 0x40, low)
    machine.set_word(long_mode.GDT + 0x48, high)
    machine.state.gdtr_limit = 0x4F
    machine.user(b"\xff\x19", rcx=long_mode.DATA)  # call far [rcx]
    machine.set_word(0x42000, 0 | 0x43 << 32)
    machine.step()
    state = machine.state
    assert (state.rip, state.cpl, state.ss_selector) == (long_mode.KERNEL, 0, 0)
    frame = [machine.word(state.rsp + 8 * i) for i in range(4)]
    assert frame == [long_mode.USER + 2, 0x2B, long_mode.USER_STACK, 0x23]


def test_there_are_no_task_switches_in_long_mode() -> None:
    machine = LongMode()
    machine.kernel(b"\xff\x29", rcx=0x12000)  # jmp far [rcx]
    machine.set_word(0x12000, 0x30 << 32)
    machine.step()
    assert (machine.vector, machine.frame(True).error_code) == (GP, 0x30)
