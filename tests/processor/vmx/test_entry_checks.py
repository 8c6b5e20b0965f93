"""VM entry refuses what the manual says it refuses, with the manual's numbers."""

from __future__ import annotations

import pytest

from tests.processor.vmx.machine import CODE, Machine
from trapline.arch import registers, vmx
from trapline.arch.vmx import EntryFailure, ExitReason, InstructionError
from trapline.processor import VmFail

HLT, INVALID_STATE = ExitReason.HLT, ExitReason.INVALID_GUEST_STATE | 1 << 31
NO_DETECTION = "icelake"  # a processor without DEBUGCTL.BLD


def test_the_machine_of_these_tests_passes_every_check() -> None:
    machine = Machine()
    assert machine.enter().reason == HLT
    assert machine.vmcs.complaint == ""


@pytest.mark.parametrize(
    "fields",
    [
        {"pin_based_vm_exec_control": 0},
        {"pin_based_vm_exec_control": vmx.PIN_DEFAULT1 | vmx.PIN_PREEMPTION_TIMER},
        {"pin_based_vm_exec_control": vmx.PIN_DEFAULT1 | vmx.PIN_VIRTUAL_NMIS},
        {"cpu_based_vm_exec_control": 0},
        {"cpu_based_vm_exec_control": vmx.PROC_DEFAULT1 | vmx.PROC_TPR_SHADOW},
        {"cr3_target_count": 5},
        {"vm_exit_controls": 0},
        {"vm_entry_controls": vmx.ENTRY_DEFAULT1 | vmx.ENTRY_TO_SMM},
        {"secondary_vm_exec_control": vmx.PROC2_NOTIFY},
        {"secondary_vm_exec_control": vmx.PROC2_UNRESTRICTED_GUEST},
        {"secondary_vm_exec_control": vmx.PROC2_EPT, "ept_pointer": 0x1000 | 3 << 3 | 1},
        {"secondary_vm_exec_control": vmx.PROC2_EPT, "ept_pointer": 0x1000 | 2 << 3 | 6},
        {"secondary_vm_exec_control": vmx.PROC2_EPT, "ept_pointer": 0x1000 | 3 << 3 | 6 | 1 << 8},
        {"vm_entry_msr_load_count": 1, "vm_entry_msr_load_addr": 8},
    ],
)
def test_bad_controls_are_error_7(fields: dict[str, int]) -> None:
    """SDM 3C, "Checks on VMX Controls"."""
    machine = Machine()
    machine.write(**fields)
    with pytest.raises(VmFail) as failure:
        machine.enter()
    assert failure.value.error == InstructionError.ENTRY_INVALID_CONTROL


def test_a_bitmap_must_be_a_page() -> None:
    machine = Machine()
    machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_MSR_BITMAPS)
    machine.write(msr_bitmap=0x8010)
    with pytest.raises(VmFail, match="MSR_BITMAP 0x8010"):
        machine.enter()


@pytest.mark.parametrize(
    ("information", "error_code"),
    [
        (1 << 31 | 1 << 8 | 3, 0),  # type 1
        (1 << 31 | 3 << 8 | 13, 0),  # #GP without its error code
        (1 << 31 | 1 << 11 | 3 << 8 | 1, 0),  # #DB with one
        (1 << 31 | 2 << 8 | 3, 0),  # NMI with vector 3
        (1 << 31 | 3 << 8 | 32, 0),  # exception 32
        (1 << 31 | 7 << 8 | 1, 0),
        (1 << 31 | 1 << 12 | 3 << 8 | 1, 0),
        (1 << 31 | 1 << 11 | 3 << 8 | 13, 0x10000),
    ],
)
def test_a_bad_event_is_error_7(information: int, error_code: int) -> None:
    machine = Machine()
    machine.write(vm_entry_intr_info_field=information, vm_entry_exception_error_code=error_code)
    with pytest.raises(VmFail) as failure:
        machine.enter()
    assert failure.value.error == InstructionError.ENTRY_INVALID_CONTROL


@pytest.mark.parametrize(
    "fields",
    [
        {"host_cr0": 0},
        {"host_cr4": registers.CR4_PAE},
        {"host_cr3": 1 << 52},
        {"host_fs_base": 1 << 63},
        {"host_cs_selector": 0},
        {"host_tr_selector": 0x1B},
        {"host_ia32_pat": 2},
        {"host_ia32_efer": 0},
        {"host_rip": 1 << 47},
    ],
)
def test_bad_host_state_is_error_8(fields: dict[str, int]) -> None:
    """SDM 3C, "Checks on Host Control Registers, MSRs, and SSP" and what follows."""
    machine = Machine()
    machine.write(**fields)
    with pytest.raises(VmFail) as failure:
        machine.enter()
    assert failure.value.error == InstructionError.ENTRY_INVALID_HOST_STATE


@pytest.mark.parametrize(
    "fields",
    [
        {"guest_cr0": registers.CR0_PE | registers.CR0_PG},  # NE is fixed
        {"guest_cr4": registers.CR4_PAE},  # VMXE is fixed
        {"guest_cr4": registers.CR4_VMXE},  # IA-32e without PAE
        {"guest_cr3": 1 << 52},
        {"guest_ia32_debugctl": 1 << 6},
        {"guest_dr7": 1 << 32 | 0x400},
        {"guest_sysenter_eip": 1 << 62},
        {"guest_ia32_pat": 3},
        {"guest_ia32_efer": registers.EFER_LME},
        {"guest_ia32_efer": registers.EFER_LME | registers.EFER_LMA | 1 << 12},
        {"guest_cs_ar_bytes": 0xA093},
        {"guest_cs_ar_bytes": 0xE09B},  # L and D
        {"guest_cs_ar_bytes": 0xA09B | 3 << 5},  # DPL is not SS's
        {"guest_ss_ar_bytes": 0xC091},
        {"guest_ds_ar_bytes": 0xC090},  # not accessed
        {"guest_ds_ar_bytes": 0x4093},  # limit needs G
        {"guest_fs_base": 1 << 63},
        {"guest_ss_base": 1 << 32},
        {"guest_tr_ar_bytes": 0x89},
        {"guest_tr_ar_bytes": 0x1008B},
        {"guest_ldtr_ar_bytes": 0x83},
        {"guest_gdtr_limit": 0x10000},
        {"guest_idtr_base": 1 << 63},
        {"guest_rip": 1 << 48},
        {"guest_rflags": 0},
        {"guest_rflags": 2 | 1 << 15},
        {"guest_rflags": 2 | registers.RFLAGS_VM},
        {"guest_activity_state": 4},
        {"guest_activity_state": 1, "guest_interruptibility_info": 2},
        {"guest_interruptibility_info": 1},  # STI with IF clear
        {"guest_interruptibility_info": 3, "guest_rflags": 0x202},
        {"guest_interruptibility_info": 1 << 5},
        {"guest_pending_dbg_exceptions": 1 << 13},
        {"guest_pending_dbg_exceptions": 1 << 15},
        {"guest_interruptibility_info": 2, "guest_rflags": 0x102},  # TF, but BS not pending
        {"guest_interruptibility_info": 2, "guest_pending_dbg_exceptions": 1 << 14},
        {"vm_entry_intr_info_field": 1 << 31 | 0x20},  # an interrupt with IF clear
    ],
)
def test_bad_guest_state_is_exit_33(fields: dict[str, int]) -> None:
    """SDM 3C, "Checking and Loading Guest State"."""
    machine = Machine()
    machine.write(**fields)
    exit = machine.enter()
    assert (exit.reason, exit.qualification) == (INVALID_STATE, EntryFailure.DEFAULT)
    assert machine.vmcs.complaint


def test_a_bad_link_pointer_and_a_blocked_nmi_have_their_own_qualifications() -> None:
    machine = Machine()
    machine.write(vmcs_link_pointer=0x1000)
    exit = machine.enter()
    assert (exit.reason, exit.qualification) == (INVALID_STATE, EntryFailure.LINK_POINTER)
    machine = Machine()
    machine.write(vm_entry_intr_info_field=1 << 31 | 2 << 8 | 2, guest_interruptibility_info=2)
    exit = machine.enter()
    assert (exit.reason, exit.qualification) == (INVALID_STATE, EntryFailure.NMI_INJECTION)


def test_a_refused_entry_can_be_repaired() -> None:
    machine = Machine()
    machine.write(guest_dr7=1 << 33)
    assert machine.enter().reason == INVALID_STATE
    assert machine.read("guest_rip") == CODE
    machine.write(guest_dr7=0x400)
    assert machine.enter().reason == HLT


@pytest.mark.parametrize(("cpu", "reason"), [("max", HLT), (NO_DETECTION, INVALID_STATE)])
def test_debugctl_bld_is_legal_only_where_cpuid_has_it(cpu: str, reason: int) -> None:
    """The check on IA32_DEBUGCTL's reserved bits, for the bit this project is about."""
    machine = Machine(cpu=cpu)
    machine.write(guest_ia32_debugctl=4)
    assert machine.enter().reason == reason


@pytest.mark.parametrize(("cpu", "reason"), [("max", HLT), (NO_DETECTION, INVALID_STATE)])
def test_a_pending_bus_lock_is_legal_only_where_cpuid_has_it(cpu: str, reason: int) -> None:
    machine = Machine(b"\xf4", cpu=cpu)
    machine.handle(1, b"\xf4")
    machine.write(guest_pending_dbg_exceptions=1 << 11)
    assert machine.enter().reason == reason


def test_without_load_debug_controls_their_fields_are_not_checked_and_not_loaded() -> None:
    """SDM 3C: with entry bit 2 clear both registers keep the values of VMX root operation."""
    machine = Machine(b"\x0f\x21\xf8\xf4")  # mov rax, dr7; hlt
    machine.clear_bits("vm_entry_controls", vmx.ENTRY_LOAD_DEBUG_CONTROLS)
    machine.clear_bits("vm_exit_controls", vmx.EXIT_SAVE_DEBUG_CONTROLS)
    machine.write(guest_ia32_debugctl=1 << 9, guest_dr7=1 << 40 | 0x401)
    assert machine.enter().reason == HLT
    assert machine.state.rax == 0x400
    assert machine.read("guest_ia32_debugctl") == 1 << 9
    assert machine.read("guest_dr7") == 1 << 40 | 0x401


def test_dr7_loses_its_reserved_bits_on_entry() -> None:
    machine = Machine(b"\x0f\x21\xf8\xf4")
    machine.write(guest_dr7=0xD000)
    assert machine.enter().reason == HLT
    assert machine.state.rax == 0x400
