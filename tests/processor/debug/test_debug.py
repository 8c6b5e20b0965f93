"""Single step, breakpoints, general detect, DR access, and the order of events at a boundary."""

from __future__ import annotations

import pytest

from tests.processor.long_mode import (
    DATA,
    HANDLER,
    KERNEL,
    STACK_TOP,
    USER,
    USER_SS,
    LongMode,
)
from trapline.arch.msr import IA32_DEBUGCTL
from trapline.arch.registers import CR4_DE, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF

NOP, HLT = b"\x90", b"\xf4"
DB, NMI, BP, UD, GP = 1, 2, 3, 6, 13
BASE = 0xFFFF0FF0


@pytest.fixture
def machine() -> LongMode:
    return LongMode()


def test_single_step_traps_after_each_instruction(machine: LongMode) -> None:
    machine.user(NOP * 3, system_flags=2 | RFLAGS_TF).step(2)
    assert (machine.frame().rip, machine.state.dr6) == (USER + 1, BASE | 1 << 14)
    assert machine.state.rip == HANDLER + 16 + 1  # the handler's first instruction was not stepped


def test_setting_tf_takes_effect_one_instruction_later(machine: LongMode) -> None:
    # pushfq; or dword [rsp], 0x100; popfq; nop; nop
    machine.user(bytes.fromhex("9c 810c2400010000 9d") + NOP * 2).step(4)
    assert machine.vector is None
    machine.step()
    assert (machine.frame().rip, machine.frame().rflags) == (USER + 10, 2 | RFLAGS_TF)


def test_btf_steps_over_what_does_not_branch(machine: LongMode) -> None:
    machine.core.msrs.write(IA32_DEBUGCTL, 2)
    machine.user(NOP * 2 + b"\xeb\x02" + NOP * 4, system_flags=2 | RFLAGS_TF).step(4)
    assert (machine.frame().rip, machine.state.dr6) == (USER + 6, BASE | 1 << 14)
    assert machine.core.msrs.read(IA32_DEBUGCTL) == 0


def test_int3_clears_tf_without_a_step(machine: LongMode) -> None:
    machine.user(b"\xcc", system_flags=2 | RFLAGS_TF).step(2)
    assert machine.state.rip == HANDLER + 16 * BP + 1  # only #BP's handler ran
    assert machine.state.dr6 == BASE


def test_syscall_steps_by_the_flags_it_enters_with(machine: LongMode) -> None:
    state = machine.state
    state.star, state.lstar = 0x0008 << 32 | 0x0018 << 48, KERNEL
    machine.bus.bytes[KERNEL : KERNEL + 2] = NOP * 2
    state.sfmask = RFLAGS_TF
    machine.user(b"\x0f\x05", system_flags=2 | RFLAGS_TF).step(2)
    assert state.rip == KERNEL + 1
    state.sfmask = 0
    machine.user(b"\x0f\x05", system_flags=2 | RFLAGS_TF).step(2)
    assert (machine.frame().rip, state.dr6) == (KERNEL, BASE | 1 << 14)


def test_a_code_breakpoint_faults_once(machine: LongMode) -> None:
    machine.user(NOP * 3, dr2=USER + 1, dr7=0x400 | 1 << 4).step(2)
    frame = machine.frame()
    assert (machine.vector, frame.rip, machine.state.dr6) == (DB, USER + 1, BASE | 4)
    assert not frame.rflags & RFLAGS_RF
    machine.user(NOP * 3, rip=USER + 1, system_flags=2 | RFLAGS_RF).step()
    assert machine.state.rip == USER + 2  # RF passed it, and is used up
    assert not machine.state.system_flags & RFLAGS_RF


def test_trap_and_next_code_breakpoint_are_two_exceptions(machine: LongMode) -> None:
    machine.bus.bytes[HANDLER + 16 : HANDLER + 18] = b"\x48\xcf"
    machine.user(NOP * 3, dr0=USER + 1, dr7=0x401, system_flags=2 | RFLAGS_TF)
    machine.step(2)  # the NOP; then its trap, and the handler's IRETQ
    assert machine.state.dr6 == BASE | 1 << 14
    machine.state.dr6 = BASE
    machine.step()
    assert (machine.vector, machine.frame().rip, machine.state.dr6) == (DB, USER + 1, BASE | 1)


@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_data_breakpoints_trap_after_the_access(engine: str) -> None:
    machine = LongMode(engine=engine)
    # nop; mov [rcx], eax; ud2
    machine.user(NOP + b"\x89\x01\x0f\x0b", rcx=DATA + 2, dr3=DATA, dr7=0x400 | 1 << 7 | 0xD << 28)
    machine.core.memory.breakpoints_changed()
    machine.core.run()
    machine.state.rip -= 1
    assert (machine.vector, machine.frame().rip, machine.state.dr6) == (DB, USER + 3, BASE | 8)


def test_io_breakpoints_need_cr4_de(machine: LongMode) -> None:
    machine.kernel(b"\xe6\x80" + NOP, dr0=0x80, dr7=0x401 | 2 << 16).step(2)
    assert machine.vector is None
    machine.state.cr4 |= CR4_DE
    machine.kernel(b"\xe6\x80" + NOP, dr0=0x80, dr7=0x401 | 2 << 16).step(2)
    assert (machine.frame().rip, machine.state.dr6) == (KERNEL + 2, BASE | 1)


MOV_RAX_DR0, MOV_DR7_RAX = b"\x0f\x21\xc0", b"\x0f\x23\xf8"
MOV_DR6_RAX, MOV_RAX_DR6 = b"\x0f\x23\xf0", b"\x0f\x21\xf0"


def test_general_detect_faults_before_the_access(machine: LongMode) -> None:
    machine.kernel(MOV_DR7_RAX, rax=0x400, dr7=0x2400).step()
    frame = machine.frame()
    assert (machine.vector, frame.rip, machine.state.dr6) == (DB, KERNEL, BASE | 1 << 13)
    assert frame.rflags & RFLAGS_RF
    assert machine.state.dr7 == 0x400  # GD is cleared for the handler


def test_mov_dr_is_for_cpl_0(machine: LongMode) -> None:
    machine.user(MOV_RAX_DR0).step()
    assert (machine.vector, machine.frame(True).error_code) == (GP, 0)


@pytest.mark.parametrize(
    ("model", "read_back"),
    [("sapphire-rapids", 0xFFFF07F0), ("legacy", 0xFFFF0FF0), ("zen5", 0xFFFF07F0)],
)
def test_dr6_reads_back_with_its_fixed_bits(model: str, read_back: int) -> None:
    machine = LongMode(model)
    machine.kernel(MOV_DR6_RAX + MOV_RAX_DR6, rax=0).step(2)
    assert machine.state.rax == read_back


@pytest.mark.parametrize("code", [MOV_DR6_RAX, MOV_DR7_RAX])
def test_upper_halves_of_dr6_and_dr7_are_reserved(machine: LongMode, code: bytes) -> None:
    machine.kernel(code, rax=1 << 32).step()
    assert (machine.vector, machine.frame(True).error_code) == (GP, 0)


def test_dr4_is_dr6_unless_cr4_de(machine: LongMode) -> None:
    mov_rax_dr4 = b"\x0f\x21\xe0"
    machine.kernel(mov_rax_dr4).step()
    assert machine.state.rax == BASE
    machine.state.cr4 |= CR4_DE
    machine.kernel(mov_rax_dr4).step()
    assert machine.vector == UD


@pytest.mark.parametrize(("model", "left"), [("sapphire-rapids", BASE), ("zen5", BASE | 5)])
def test_icebp_reports_no_cause(model: str, left: int) -> None:
    machine = LongMode(model)
    machine.user(b"\xf1", dr6=BASE | 5).step()
    assert (machine.vector, machine.frame().rip, machine.state.dr6) == (DB, USER + 1, left)


def test_mov_ss_holds_traps_and_interrupts_for_one_instruction(machine: LongMode) -> None:
    machine.user(b"\x8e\xd0" + NOP * 2, rax=USER_SS, system_flags=2 | RFLAGS_IF | RFLAGS_TF)
    machine.step()
    machine.core.interrupt_lines.raise_interrupt(0x40)
    machine.core.interrupt_lines.raise_nmi()
    machine.step()
    assert (machine.vector, machine.state.rip) == (None, USER + 3)
    machine.step()  # the trap's handler, interrupted by the NMI before its first instruction
    assert machine.state.rip == HANDLER + 16 * NMI + 1
    assert machine.frame().rip == HANDLER + 16 * DB
    assert machine.state.nmi_blocked == 1


def test_a_software_interrupt_that_faults_loses_what_mov_ss_held_back(machine: LongMode) -> None:
    """As any other fault there; nowhere stated (docs/support.md)."""
    machine.gate(BP, dpl=0)
    machine.set_word(0x42000, USER_SS)  # at DATA
    machine.user(b"\x8e\x17\xcc", rdi=DATA, dr1=DATA, dr7=0x400 | 3 << 20 | 1 << 2)
    machine.core.memory.breakpoints_changed()
    machine.step()
    assert machine.state.pending_debug & 0xF == 2
    machine.step(2)
    assert machine.state.rip == HANDLER + 16 * GP + 1
    assert (machine.frame(has_error_code=True).rip, machine.state.dr6) == (USER + 2, BASE)


def test_sti_holds_interrupts_but_no_debug_trap(machine: LongMode) -> None:
    machine.core.interrupt_lines.raise_interrupt(0x40)
    machine.kernel(b"\xfb" + NOP * 2).step(2)
    assert machine.state.rip == KERNEL + 2
    machine.step()
    assert (machine.state.rip, machine.frame().rip) == (HANDLER + 16 * 0x40 + 1, KERNEL + 2)


def test_an_interrupt_waits_for_if_and_an_nmi_does_not(machine: LongMode) -> None:
    machine.core.interrupt_lines.raise_interrupt(0x40)
    machine.user(NOP * 2).step()
    assert machine.state.rip == USER + 1
    machine.core.interrupt_lines.raise_nmi()
    machine.step()
    assert machine.state.rip == HANDLER + 16 * NMI + 1
    assert machine.core.interrupt_lines.vector == 0x40


def test_a_second_nmi_waits_for_iret(machine: LongMode) -> None:
    machine.bus.bytes[HANDLER + 32 : HANDLER + 34] = b"\x48\xcf"
    machine.user(NOP * 4)
    machine.core.interrupt_lines.raise_nmi()
    machine.core.interrupt_lines.raise_nmi()
    machine.step()
    machine.core.interrupt_lines.raise_nmi()
    assert machine.state.rip == USER
    machine.step()
    assert machine.state.rip == USER  # taken again, and returned from
    assert machine.state.rsp != STACK_TOP


@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_a_halted_processor_wakes_for_an_interrupt(engine: str) -> None:
    machine = LongMode(engine=engine)
    machine.kernel(b"\xfb" + HLT + NOP).core.run()
    assert (machine.state.activity, machine.state.rip) == (1, KERNEL + 2)
    machine.core.interrupt_lines.raise_interrupt(0x40)
    machine.core.run()
    assert (machine.state.rip, machine.frame().rip) == (HANDLER + 16 * 0x40 + 1, KERNEL + 2)


def test_each_iteration_of_a_string_instruction_is_stepped(machine: LongMode) -> None:
    machine.bus.bytes[HANDLER + 16 : HANDLER + 18] = b"\x48\xcf"
    registers = {"rcx": 3, "rdi": DATA, "rax": 0x55}
    machine.user(b"\xf3\xaa" + NOP, system_flags=2 | RFLAGS_TF, **registers).step()
    assert machine.state.rcx == 2
    machine.step()  # the trap's IRETQ
    assert machine.state.rip == USER
    assert machine.state.dr6 == BASE | 1 << 14
    machine.step(3)
    assert (machine.state.rcx, machine.state.rip) == (0, USER + 2)


@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_a_data_breakpoint_stops_a_string_instruction_at_its_iteration(engine: str) -> None:
    machine = LongMode(engine=engine)
    registers = {"rcx": 8, "rdi": DATA, "rax": 0x55, "dr1": DATA + 2, "dr7": 0x400 | 4 | 1 << 20}
    machine.user(b"\xf3\xaa" + NOP, **registers)
    machine.core.memory.breakpoints_changed()
    machine.core.run()
    assert (machine.state.rcx, machine.state.dr6) == (5, BASE | 2)
    assert (machine.frame().rip, machine.frame().rflags & RFLAGS_RF) == (USER, RFLAGS_RF)
