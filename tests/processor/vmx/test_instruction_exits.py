"""Instructions and control registers that leave a VMX guest, as the controls say."""

from __future__ import annotations

import pytest

from tests.processor.vmx.machine import (
    CODE,
    HLT,
    IO_BITMAP,
    MSR_BITMAP,
    SPIN,
    Machine,
)
from trapline.arch import registers, vmx
from trapline.arch.registers import RFLAGS_IF
from trapline.arch.vmx import ExitReason

# -- instructions ----------------------------------------------------------------------------------


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
    machine.write(secondary_vm_exec_control=vmx.PROC2_RDTSCP)
    machine.set_bits("cpu_based_vm_exec_control", control)
    machine.state.rdi = 0x123000
    exit = machine.enter()
    assert (exit.reason, exit.instruction_length) == (reason, length)
    assert machine.read("guest_rip") == CODE + 1
    assert exit.qualification == (0x123000 if reason == ExitReason.INVLPG else 0)
    if control:
        machine = Machine(code + b"\x0f\xa2", 0, engine)
        machine.write(secondary_vm_exec_control=vmx.PROC2_RDTSCP)
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


# -- control registers -----------------------------------------------------------------------------


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


# -- windows, interrupts, monitor trap -------------------------------------------------------------


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
