"""What leaves a VMX guest, and what the exit says: the manual's tables, on both engines."""

from __future__ import annotations

import pytest

from tests.processor.vmx.machine import (
    CODE,
    DATA,
    DIRECTORY,
    IDT,
    IO_BITMAP,
    MSR_BITMAP,
    Machine,
)
from trapline.arch import registers, vmx
from trapline.arch.registers import RFLAGS_IF, RFLAGS_TF
from trapline.arch.vmx import ExitReason
from trapline.processor import VmExit

SPLIT = DATA + 0x3E
LOCK_XADD = b"\xf0\x0f\xc1\x07"  # lock xadd [rdi], eax
HLT = b"\xf4"
SPIN = b"\xeb\xfe"
HARDWARE_DB = 0x80000301
BLD = 4


@pytest.fixture(params=["interp", "jit"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def debug_guest(engine: str, code: bytes, cpl: int = 3, **fields: int) -> Machine:
    """#DB is intercepted and BLD is set."""
    machine = Machine(code, cpl, engine)
    machine.write(exception_bitmap=1 << 1, guest_ia32_debugctl=BLD, **fields)
    machine.state.rdi, machine.state.rax = SPLIT, 1
    return machine


# -- debug exceptions ---------------------------------------------------------------------------


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


# -- pending debug exceptions -------------------------------------------------------------------


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


# -- injection ----------------------------------------------------------------------------------


def test_an_injected_debug_exception_changes_no_debug_register(engine: str) -> None:
    """SDM 3C, "Details of Vectored-Event Injection": nor does the exception bitmap see it."""
    machine = debug_guest(engine, HLT, guest_dr7=0x400 | 1 << 13)
    handler = machine.handle(1, HLT)
    machine.write(vm_entry_intr_info_field=HARDWARE_DB)
    assert machine.enter().reason == ExitReason.HLT
    assert machine.read("guest_rip") == handler
    assert machine.state.dr6 == 0xFFFF0FF0
    assert machine.read("guest_dr7") == 0x400 | 1 << 13
    assert machine.read("vm_entry_intr_info_field") == 0  # consumed
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


# -- bus-lock exits -----------------------------------------------------------------------------


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


# -- instructions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "control", "reason", "length"),
    [
        (b"\x0f\xa2", 0, ExitReason.CPUID, 2),
        (b"\xf4", vmx.PROC_HLT, ExitReason.HLT, 1),
        (b"\x0f\x31", vmx.PROC_RDTSC, ExitReason.RDTSC, 2),
        (b"\x0f\x01\xf9", vmx.PROC_RDTSC, ExitReason.RDTSCP, 3),
        (b"\x0f\x01\x3f", vmx.PROC_INVLPG, ExitReason.INVLPG, 3),
        (b"\x0f\x33", vmx.PROC_RDPMC, ExitReason.RDPMC, 2),
        (b"\x0f\x08", 0, ExitReason.INVD, 2),
    ],
)
def test_instructions_leave_as_their_controls_say(
    engine: str, code: bytes, control: int, reason: int, length: int
) -> None:
    machine = Machine(b"\x90" + code + HLT, 0, engine)
    machine.set_bits("cpu_based_vm_exec_control", control)
    machine.state.rdi = 0x123000
    exit = machine.enter()
    assert (exit.reason, exit.instruction_length) == (reason, length)
    assert machine.read("guest_rip") == CODE + 1
    assert exit.qualification == (0x123000 if reason == ExitReason.INVLPG else 0)
    if control:
        machine = Machine(code + b"\x0f\xa2", 0, engine)
        machine.clear_bits("cpu_based_vm_exec_control", control)
        if reason not in (ExitReason.HLT, ExitReason.RDPMC):
            assert machine.enter().reason == ExitReason.CPUID


def test_port_accesses_leave_unconditionally_or_by_the_bitmap(engine: str) -> None:
    code = b"\x66\xe7\x42" + HLT  # out 0x42, ax
    machine = Machine(code, 0, engine)
    machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_UNCONDITIONAL_IO)
    exit = machine.enter()
    assert (exit.reason, exit.qualification) == (ExitReason.IO_INSTRUCTION, 0x420041)
    for port, reason in ((0x41, ExitReason.HLT), (0x43, ExitReason.IO_INSTRUCTION)):
        machine = Machine(code, 0, engine)
        machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_IO_BITMAPS)
        machine.write(io_bitmap_a=IO_BITMAP, io_bitmap_b=IO_BITMAP + 0x1000)
        machine.ram.load(IO_BITMAP + (port >> 3), bytes([1 << (port & 7)]))
        assert machine.enter().reason == reason


@pytest.mark.parametrize(("index", "base"), [(0x1D9, 0), (0xC0000080, 0x400)])
@pytest.mark.parametrize(
    ("code", "reason", "half"),
    [(b"\x0f\x32", ExitReason.RDMSR, 0), (b"\x0f\x30", ExitReason.WRMSR, 0x800)],
)
def test_the_msr_bitmap_decides_by_register_and_direction(
    engine: str, index: int, base: int, code: bytes, reason: int, half: int
) -> None:
    for chosen in (True, False):
        machine = Machine(code + HLT, 0, engine)
        machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_MSR_BITMAPS)
        machine.write(msr_bitmap=MSR_BITMAP)
        machine.state.rcx, machine.state.rdx = index, 0
        machine.state.rax = machine.read("guest_ia32_efer") if index == 0xC0000080 else 0
        number = index & 0x1FFF
        if chosen:
            machine.ram.load(MSR_BITMAP + base + half + (number >> 3), bytes([1 << (number & 7)]))
        assert machine.enter().reason == (reason if chosen else ExitReason.HLT)


def test_without_a_bitmap_every_msr_access_leaves(engine: str) -> None:
    machine = Machine(b"\x0f\x32" + HLT, 0, engine)
    machine.state.rcx = 0x10
    assert machine.enter().reason == ExitReason.RDMSR


def test_mov_dr_leaves_with_register_and_direction(engine: str) -> None:
    for code, qualification in (
        (b"\x0f\x21\xf3", 6 | 1 << 4 | 3 << 8),
        (b"\x0f\x23\xfe", 7 | 6 << 8),
    ):
        machine = Machine(code + HLT, 0, engine)
        machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_MOV_DR)
        machine.write(guest_dr7=0x400 | 1 << 13)  # the exit comes before general detect
        exit = machine.enter()
        assert (exit.reason, exit.qualification) == (ExitReason.MOV_DR, qualification)


# -- control registers --------------------------------------------------------------------------


def test_a_masked_cr0_bit_reads_from_the_shadow_and_leaves_when_it_differs(engine: str) -> None:
    ts, wp = registers.CR0_TS, registers.CR0_WP
    read = b"\x0f\x20\xc0" + HLT  # mov rax, cr0
    machine = Machine(read, 0, engine)
    machine.write(cr0_guest_host_mask=wp, cr0_read_shadow=wp)
    assert machine.enter().reason == ExitReason.HLT
    assert machine.state.rax == machine.read("guest_cr0") | wp
    write = b"\x0f\x22\xc0" + HLT  # mov cr0, rax
    machine = Machine(write, 0, engine)
    machine.write(cr0_guest_host_mask=wp, cr0_read_shadow=wp)
    machine.state.rax = machine.read("guest_cr0") | ts | wp
    assert machine.enter().reason == ExitReason.HLT  # WP equals its shadow, TS is the guest's
    assert machine.read("guest_cr0") & (ts | wp) == ts
    machine = Machine(write, 0, engine)
    machine.write(cr0_guest_host_mask=wp, cr0_read_shadow=wp)
    machine.state.rax = machine.read("guest_cr0")
    exit = machine.enter()
    assert (exit.reason, exit.qualification) == (ExitReason.CR_ACCESS, 0)


def test_clts_and_lmsw_have_their_own_rules(engine: str) -> None:
    ts = registers.CR0_TS
    machine = Machine(b"\x0f\x06" + HLT, 0, engine)  # clts
    machine.set_bits("guest_cr0", ts)
    machine.write(cr0_guest_host_mask=ts, cr0_read_shadow=ts)
    exit = machine.enter()
    assert (exit.reason, exit.qualification) == (ExitReason.CR_ACCESS, 2 << 4)
    machine = Machine(b"\x0f\x06" + HLT, 0, engine)
    machine.set_bits("guest_cr0", ts)
    machine.write(cr0_guest_host_mask=ts)
    assert machine.enter().reason == ExitReason.HLT
    assert machine.read("guest_cr0") & ts  # the host's bit stays
    machine = Machine(b"\x0f\x01\xf0" + HLT, 0, engine)  # lmsw ax
    machine.write(cr0_guest_host_mask=ts)
    machine.state.rax = 0x9
    exit = machine.enter()
    assert (exit.reason, exit.qualification) == (ExitReason.CR_ACCESS, 3 << 4 | 9 << 16)


def test_cr3_loads_leave_unless_the_value_is_a_target(engine: str) -> None:
    for target, reason in ((0x1000, ExitReason.HLT), (0x5000, ExitReason.CR_ACCESS)):
        machine = Machine(b"\x0f\x22\xd8" + HLT, 0, engine)  # mov cr3, rax
        machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_CR3_LOAD)
        machine.write(cr3_target_count=1, cr3_target_value0=target)
        machine.state.rax = 0x1000
        exit = machine.enter()
        assert exit.reason == reason
        assert exit.qualification == (3 if reason == ExitReason.CR_ACCESS else 0)


# -- windows, interrupts, monitor trap ----------------------------------------------------------


def test_the_interrupt_window_opens_after_the_shadow_of_sti(engine: str) -> None:
    machine = Machine(b"\x90\xfb\x90\x90" + HLT, 0, engine)  # nop; sti; nop; nop; hlt
    machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_INTERRUPT_WINDOW)
    assert machine.enter().reason == ExitReason.INTERRUPT_WINDOW
    assert machine.read("guest_rip") == CODE + 3
    machine = Machine(HLT, 0, engine)
    machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_INTERRUPT_WINDOW)
    machine.write(guest_rflags=2 | RFLAGS_IF)
    assert machine.enter().reason == ExitReason.INTERRUPT_WINDOW
    assert machine.read("guest_rip") == CODE


def test_the_nmi_window_opens_with_iret(engine: str) -> None:
    machine = Machine(b"\x48\xcf", 0, engine)  # iretq, from an NMI handler
    at = CODE + 0x20
    machine.ram.load(at, HLT)
    frame = (at, 0x08, 2, 0x38000, 0x10)
    machine.ram.load(0x37000, b"".join(word.to_bytes(8, "little") for word in frame))
    machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_NMI_WINDOW)
    machine.write(guest_rsp=0x37000, guest_interruptibility_info=8)
    assert machine.enter().reason == ExitReason.NMI_WINDOW
    assert machine.read("guest_rip") == at
    assert machine.read("guest_interruptibility_info") == 0


def test_the_monitor_trap_flag_leaves_after_each_instruction(engine: str) -> None:
    machine = Machine(b"\x90\x90" + HLT, 0, engine)
    machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_MONITOR_TRAP_FLAG)
    for i in (1, 2):
        assert machine.enter().reason == ExitReason.MONITOR_TRAP_FLAG
        assert machine.read("guest_rip") == CODE + i


def test_the_monitor_trap_flag_leaves_before_an_injected_handler(engine: str) -> None:
    machine = Machine(b"\x90" + HLT, 0, engine)
    handler = machine.handle(6, HLT)
    machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_MONITOR_TRAP_FLAG)
    machine.write(vm_entry_intr_info_field=0x80000306)
    assert machine.enter().reason == ExitReason.MONITOR_TRAP_FLAG
    assert machine.read("guest_rip") == handler


def test_a_kick_is_an_external_interrupt(engine: str) -> None:
    machine = Machine(SPIN, 0, engine)
    machine.core.kick()
    exit = machine.enter()
    assert (exit.reason, machine.read("guest_rip")) == (ExitReason.EXTERNAL_INTERRUPT, CODE)


# -- MSR areas ----------------------------------------------------------------------------------

LSTAR, STAR, AREA = 0xC0000082, 0xC0000081, 0x70000


def msr_list(machine: Machine, at: int, *rows: tuple[int, int]) -> None:
    for i, row in enumerate(rows):
        words = b"".join(word.to_bytes(8, "little") for word in row)
        machine.ram.load(at + 16 * i, words)


def test_msr_lists_are_loaded_stored_and_loaded_again(engine: str) -> None:
    """SDM 3C, "Loading MSRs" and "Saving MSRs"."""
    machine = Machine(b"\x0f\x32" + HLT, 0, engine)  # rdmsr
    machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_MSR_BITMAPS)
    machine.write(msr_bitmap=MSR_BITMAP)
    msr_list(machine, AREA, (LSTAR, 0x1111), (STAR, 0x2222))
    msr_list(machine, AREA + 0x100, (LSTAR, 0))
    msr_list(machine, AREA + 0x200, (LSTAR, 0x3333))
    machine.write(
        vm_entry_msr_load_count=2, vm_entry_msr_load_addr=AREA,
        vm_exit_msr_store_count=1, vm_exit_msr_store_addr=AREA + 0x100,
        vm_exit_msr_load_count=1, vm_exit_msr_load_addr=AREA + 0x200,
    )  # fmt: skip
    machine.state.rcx = LSTAR
    assert machine.enter().reason == ExitReason.HLT
    assert machine.state.rax == 0x1111
    assert machine.quad(AREA + 0x108) == 0x1111
    assert (machine.state.lstar, machine.state.star) == (0x3333, 0x2222)


@pytest.mark.parametrize(
    "bad", [(0xC0000100, 0), (LSTAR, 1 << 62), (LSTAR | 1 << 32, 0), (0x33333, 0)]
)
def test_an_msr_that_cannot_be_loaded_is_exit_34_with_its_number(bad: tuple[int, int]) -> None:
    machine = Machine(HLT)
    msr_list(machine, AREA, (STAR, 1), bad)
    machine.write(vm_entry_msr_load_count=2, vm_entry_msr_load_addr=AREA)
    exit = machine.enter()
    assert (exit.reason, exit.qualification) == (ExitReason.MSR_LOAD_FAILURE | 1 << 31, 2)
    assert machine.read("guest_rip") == CODE


# -- EPT ----------------------------------------------------------------------------------------

EPT = 0x60000


def ept_guest(engine: str, code: bytes, entries: dict[int, int]) -> Machine:
    """Identity EPT of 2 MiB pages; `entries` replaces some by index."""
    machine = Machine(code, 0, engine)
    machine.write(
        secondary_vm_exec_control=vmx.PROC2_EPT, ept_pointer=EPT | vmx.EPTP_TYPE & 6 | 3 << 3
    )
    words = {EPT: EPT + 0x1007, EPT + 0x1000: EPT + 0x2007}
    words |= {EPT + 0x2000 + 8 * i: entries.get(i, i << 21 | 0xB7) for i in range(2)}
    for at, word in words.items():
        machine.ram.load(at, word.to_bytes(8, "little"))
    return machine


def test_an_ept_violation_names_access_rights_and_address(engine: str) -> None:
    store = b"\x88\x07" + HLT  # mov [rdi], al
    for entry, allowed in ((0, 0), (1 << 21 | 0xB5, 5)):
        machine = ept_guest(engine, store, {1: entry})
        machine.state.rdi = 0x200123
        exit = machine.enter()
        assert exit.reason == ExitReason.EPT_VIOLATION
        assert exit.guest_physical == exit.guest_linear == 0x200123
        assert exit.qualification == 2 | allowed << 3 | 1 << 7 | 1 << 8
        assert machine.read("guest_rip") == CODE


def test_a_violation_on_a_paging_entry_says_so(engine: str) -> None:
    machine = ept_guest(engine, b"\x8a\x07" + HLT, {1: 0})
    machine.ram.load(DIRECTORY + 8, (0x300000 | 7).to_bytes(8, "little"))  # table in a hole
    machine.state.rdi = 0x200123
    exit = machine.enter()
    assert exit.guest_physical == 0x300000
    assert exit.guest_linear == 0x200123
    assert exit.qualification & 0x1C0 == 1 << 7


def test_a_misconfigured_entry_is_exit_49(engine: str) -> None:
    machine = ept_guest(engine, b"\x8a\x07" + HLT, {1: 1 << 21 | 0xB2})  # write-only
    machine.state.rdi = 0x200123
    exit = machine.enter()
    assert (exit.reason, exit.guest_physical) == (ExitReason.EPT_MISCONFIGURATION, 0x200123)


def test_the_memory_type_of_ept_and_pat_decides_a_bus_lock(engine: str) -> None:
    for entry in (1 << 21 | 0x87, 1 << 21 | 0xB7 | 1 << 6):  # UC; WB with IPAT
        machine = ept_guest(engine, LOCK_XADD + HLT, {1: entry})
        machine.set_bits("secondary_vm_exec_control", vmx.PROC2_BUS_LOCK_DETECTION)
        machine.ram.load(DIRECTORY + 8, (1 << 21 | 0x87 | 0x10).to_bytes(8, "little"))  # PCD
        machine.state.rdi = 0x200000
        is_uncached = not entry & 1 << 6
        expected = 0x0400004A if is_uncached else ExitReason.HLT
        assert machine.enter().reason == expected


def test_every_exit_is_a_new_value(engine: str) -> None:
    machine = Machine(b"\x0f\xa2\x0f\xa2", 0, engine)
    first = machine.enter()
    machine.write(guest_rip=CODE + 2)
    second = machine.enter()
    assert first == second == VmExit(ExitReason.CPUID, instruction_length=2)
    assert first is not second


def test_the_idt_is_where_the_machine_says() -> None:
    """The helper itself: its gates are found."""
    machine = Machine(b"\x0f\x0b")
    handler = machine.handle(6, HLT)
    assert machine.quad(IDT + 6 * 16) & 0xFFFF == handler
    assert machine.enter().reason == ExitReason.HLT
    assert machine.read("guest_rip") == handler
