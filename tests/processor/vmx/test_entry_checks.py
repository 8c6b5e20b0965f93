"""What VM entry loads of the fields that it has checked, and what it accepts by the model."""

from __future__ import annotations

import pytest

from tests.processor.vmx.machine import CODE, Machine
from trapline.arch import vmx
from trapline.arch.vmx import ExitReason

HLT, INVALID_STATE = ExitReason.HLT, ExitReason.INVALID_GUEST_STATE | 1 << 31
NO_DETECTION = "icelake"  # a processor without DEBUGCTL.BLD


def test_the_machine_of_these_tests_passes_every_check() -> None:
    machine = Machine()
    assert machine.enter().reason == HLT
    assert machine.vmcs.complaint == ""


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
