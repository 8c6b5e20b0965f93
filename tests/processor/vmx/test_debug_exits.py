"""Debug exceptions of a VMX guest: bus locks, pending traps, injection."""

from __future__ import annotations

import pytest

from tests.processor.vmx.machine import (
    CODE,
    DATA,
    HLT,
    LOCK_XADD,
    SPIN,
    SPLIT,
    Machine,
)
from trapline.arch import vmx
from trapline.arch.registers import RFLAGS_TF
from trapline.arch.vmx import ExitReason

HARDWARE_DB = 0x80000301
BLD = 4


def debug_guest(engine: str, code: bytes, cpl: int = 3, **fields: int) -> Machine:
    """#DB is intercepted and BLD is set."""
    machine = Machine(code, cpl, engine)
    machine.write(exception_bitmap=1 << 1, guest_ia32_debugctl=BLD, **fields)
    machine.state.rdi, machine.state.rax = SPLIT, 1
    return machine


# -- debug exceptions ------------------------------------------------------------------------------


def test_a_bus_lock_is_bit_11_of_the_exit_qualification(engine: str) -> None:
    """The founding text: "identified through the bit 11 of the exit qualification"."""
    machine = debug_guest(engine, LOCK_XADD + SPIN)
    exit = machine.enter()
    assert (exit.reason, exit.qualification) == (ExitReason.EXCEPTION_OR_NMI, 1 << 11)
    assert (exit.interruption_info, exit.error_code) == (HARDWARE_DB, 0)
    assert machine.read("guest_rip") == CODE + len(LOCK_XADD)
    assert machine.quad(SPLIT) & 0xFFFFFFFF == 1
    assert machine.state.dr6 == 0xFFFF0FF0  # a direct exit leaves DR6 to the hypervisor
    assert machine.read("guest_pending_dbg_exceptions") == 0


def test_causes_of_one_instruction_come_together(engine: str) -> None:
    machine = debug_guest(engine, LOCK_XADD + SPIN, guest_rflags=2 | RFLAGS_TF)
    machine.state.dr1, machine.state.dr6 = DATA + 0x40, 0xFFFF07F1
    machine.write(guest_dr7=0x400 | 1 << 2 | 0xD << 20)
    assert machine.enter().qualification == 1 << 11 | 1 << 14 | 1 << 1


def test_cpl_0_and_whole_lines_cause_nothing(engine: str) -> None:
    machine = debug_guest(engine, LOCK_XADD + HLT, cpl=0)
    assert machine.enter().reason == ExitReason.HLT
    machine = debug_guest(engine, LOCK_XADD + b"\x0f\x0b")
    machine.set_bits("exception_bitmap", 1 << 6)
    machine.state.rdi = DATA + 0x3C
    assert machine.enter().interruption_info == 0x80000306


def test_icebp_is_a_privileged_software_exception(engine: str) -> None:
    """Interruption type 5, no cause, RIP at the instruction."""
    machine = debug_guest(engine, b"\xf1" + SPIN)
    exit = machine.enter()
    assert (exit.interruption_info, exit.qualification) == (0x80000501, 0)
    assert exit.instruction_length == 1
    assert machine.read("guest_rip") == CODE


def test_general_detect_is_a_fault_with_bd(engine: str) -> None:
    machine = debug_guest(engine, b"\x0f\x21\xc0" + HLT, cpl=0, guest_dr7=0x400 | 1 << 13)
    exit = machine.enter()
    assert (exit.interruption_info, exit.qualification) == (HARDWARE_DB, 1 << 13)
    assert machine.read("guest_rip") == CODE
    assert machine.read("guest_dr7") == 0x400 | 1 << 13  # GD is not cleared by the exit


def test_an_exception_that_is_not_intercepted_is_the_guests(engine: str) -> None:
    machine = Machine(LOCK_XADD + SPIN, 3, engine)
    machine.write(guest_ia32_debugctl=BLD)
    machine.state.rdi = SPLIT
    machine.handle(1, b"\x0f\x21\xf0" + HLT)  # mov rax, dr6; hlt
    assert machine.enter().reason == ExitReason.HLT
    assert machine.state.rax == 0xFFFF07F0
    assert machine.read("guest_ia32_debugctl") == BLD


# -- pending debug exceptions ----------------------------------------------------------------------


def test_a_pending_bus_lock_is_taken_before_the_first_instruction(engine: str) -> None:
    """SDM 3C, "Delivery of Pending Debug Exceptions after VM Entry"."""
    machine = debug_guest(engine, HLT, cpl=0, guest_pending_dbg_exceptions=1 << 11)
    exit = machine.enter()
    assert (exit.interruption_info, exit.qualification) == (HARDWARE_DB, 1 << 11)
    assert machine.read("guest_rip") == CODE


def test_bit_12_makes_breakpoints_valid_and_is_not_reported(engine: str) -> None:
    machine = debug_guest(engine, HLT, cpl=0, guest_pending_dbg_exceptions=1 << 12 | 2)
    assert machine.enter().qualification == 2
    machine = debug_guest(engine, HLT, cpl=0, guest_pending_dbg_exceptions=2)
    assert machine.enter().reason == ExitReason.HLT  # matched, but not enabled


def test_mov_ss_holds_pending_traps_back_for_one_instruction(engine: str) -> None:
    machine = debug_guest(
        engine,
        b"\x90" + HLT,
        cpl=0,
        guest_interruptibility_info=2,
        guest_pending_dbg_exceptions=1 << 11,
    )
    exit = machine.enter()
    assert exit.qualification == 1 << 11
    assert machine.read("guest_rip") == CODE + 1
    assert machine.read("guest_interruptibility_info") == 0


def test_injecting_an_exception_drops_pending_traps(engine: str) -> None:
    machine = debug_guest(engine, HLT, cpl=0, guest_pending_dbg_exceptions=1 << 11)
    handler = machine.handle(6, HLT)
    machine.write(vm_entry_intr_info_field=0x80000306)
    assert machine.enter().reason == ExitReason.HLT
    assert machine.read("guest_rip") == handler
    assert machine.read("guest_pending_dbg_exceptions") == 0


# -- injection -------------------------------------------------------------------------------------


def test_an_injected_debug_exception_changes_no_debug_register(engine: str) -> None:
    """SDM 3C, "Details of Vectored-Event Injection": nor does the exception bitmap see it."""
    machine = debug_guest(engine, HLT, guest_dr7=0x400 | 1 << 13)
    handler = machine.handle(1, HLT)
    machine.write(vm_entry_intr_info_field=HARDWARE_DB)
    assert machine.enter().reason == ExitReason.HLT
    assert machine.read("guest_rip") == handler
    assert machine.state.dr6 == 0xFFFF0FF0
    assert machine.read("guest_dr7") == 0x400 | 1 << 13
    assert machine.read("vm_entry_intr_info_field") == HARDWARE_DB & ~(1 << 31)  # consumed
    assert machine.quad(machine.state.rsp) == CODE


def test_an_injected_error_code_is_pushed(engine: str) -> None:
    machine = Machine(HLT, 3, engine)
    machine.handle(13, HLT)
    machine.write(
        vm_entry_intr_info_field=1 << 31 | 1 << 11 | 3 << 8 | 13,
        vm_entry_exception_error_code=0x58,
    )
    machine.enter()
    assert machine.quad(machine.state.rsp) == 0x58
    assert machine.quad(machine.state.rsp + 8) == CODE


def test_an_injected_software_interrupt_saves_the_next_instruction(engine: str) -> None:
    machine = Machine(HLT, 3, engine)
    machine.handle(0x80, HLT, dpl=3)
    machine.write(vm_entry_intr_info_field=0x80000480, vm_entry_instruction_len=2)
    machine.enter()
    assert machine.quad(machine.state.rsp) == CODE + 2


def test_an_exit_while_delivering_reports_the_event(engine: str) -> None:
    """IDT-vectoring information: the injected #GP meets a page fault on its IDT entry."""
    machine = Machine(HLT, 3, engine)
    machine.write(
        exception_bitmap=1 << 14,
        guest_idtr_base=0x800000,
        vm_entry_intr_info_field=0x80000B0D,
        vm_entry_exception_error_code=0x10,
    )
    exit = machine.enter()
    assert exit.interruption_info == 0x80000B0E
    assert exit.qualification == 0x800000 + 16 * 13
    assert (exit.vectoring_info, exit.vectoring_error_code) == (0x80000B0D, 0x10)


def test_a_triple_fault_leaves_without_vectoring_information(engine: str) -> None:
    machine = Machine(b"\x0f\x0b", 0, engine)
    machine.write(guest_idtr_limit=0)
    exit = machine.enter()
    assert (exit.reason, exit.vectoring_info) == (ExitReason.TRIPLE_FAULT, 0)


def test_the_page_fault_mask_can_turn_the_bit_round(engine: str) -> None:
    """SDM 3C, "Exception Bitmap": only faults whose error code matches, or all others."""
    read_high = b"\x48\x8b\x04\x25\x00\x00\x80\x00" + HLT  # mov rax, [0x800000]
    for bitmap, match, leaves in ((1 << 14, 0, True), (1 << 14, 2, False), (0, 2, True)):
        machine = Machine(read_high, 0, engine)
        machine.handle(14, HLT)
        machine.write(
            exception_bitmap=bitmap,
            page_fault_error_code_mask=2,
            page_fault_error_code_match=match,
        )
        exit = machine.enter()
        assert (exit.reason == ExitReason.EXCEPTION_OR_NMI) is leaves
        if leaves:
            assert (exit.qualification, exit.error_code) == (0x800000, 0)
            assert machine.state.cr2 == 0


# -- bus-lock exits --------------------------------------------------------------------------------


def locking_guest(engine: str, cpl: int = 3) -> Machine:
    machine = Machine(LOCK_XADD + (HLT if cpl == 0 else SPIN), cpl, engine)
    machine.write(secondary_vm_exec_control=vmx.PROC2_BUS_LOCK_DETECTION)
    machine.state.rdi, machine.state.rax = SPLIT, 1
    return machine


@pytest.mark.parametrize("cpl", [0, 3])
def test_the_bus_lock_exit_is_trap_like_at_any_cpl(engine: str, cpl: int) -> None:
    machine = locking_guest(engine, cpl)
    exit = machine.enter()
    assert (exit.reason, exit.qualification) == (0x0400004A, 0)
    assert machine.read("guest_rip") == CODE + len(LOCK_XADD)
    assert machine.quad(SPLIT) & 0xFFFFFFFF == 1


def test_the_bus_lock_exit_leaves_the_debug_exception_pending(engine: str) -> None:
    machine = locking_guest(engine)
    machine.write(exception_bitmap=2, guest_ia32_debugctl=BLD)
    assert machine.enter().reason == 0x0400004A
    assert machine.read("guest_pending_dbg_exceptions") == 1 << 11
    exit = machine.enter()
    assert (exit.interruption_info, exit.qualification) == (HARDWARE_DB, 1 << 11)
