"""MSR lists and EPT of a VMX guest."""

from __future__ import annotations

import pytest

from tests.processor.vmx.machine import (
    CODE,
    DIRECTORY,
    HLT,
    IDT,
    LOCK_XADD,
    MSR_BITMAP,
    Machine,
)
from trapline.arch import vmx
from trapline.arch.vmx import ExitReason
from trapline.processor import VmExit

# -- MSR areas -------------------------------------------------------------------------------------

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


# -- EPT -------------------------------------------------------------------------------------------

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


def test_a_violation_while_delivering_a_software_interrupt_reports_its_length(engine: str) -> None:
    """It is needed to inject the interrupt again: RIP is still the INT."""
    machine = ept_guest(engine, b"\xcd\x80" + HLT, {1: 0})
    machine.write(guest_idtr_base=0x200000)
    exit = machine.enter()
    assert (exit.reason, exit.guest_physical) == (ExitReason.EPT_VIOLATION, 0x200800)
    assert (exit.vectoring_info, exit.instruction_length) == (0x80000480, 2)
    assert machine.read("guest_rip") == CODE


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
