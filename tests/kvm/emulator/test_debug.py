"""The forced-emulation prefix itself, and debug exceptions around emulated instructions."""

from __future__ import annotations

import pytest

from tests.kvm.emulator.conftest import MODELS
from tests.kvm.guest import DATA, KERNEL_CODE, Guest, handle, long_mode
from trapline.arch.debug import DR6_ACTIVE_LOW, DR6_BD, DR6_BS, DR7_FIXED_1, DR7_GD
from trapline.arch.registers import RFLAGS_TF
from trapline.kvm import Kvm, abi, exits, open_kvm

PREFIX = b"\x0f\x0bkvm"
HLT, NOP, UD2 = b"\xf4", b"\x90", b"\x0f\x0b"
EMULATED = KERNEL_CODE + len(PREFIX)
GLOBAL_0 = 1 << 1
DEBUGGER = abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_HW_BP


def _guest(kvm: Kvm, code: bytes, cpl: int = 0) -> Guest:
    guest = long_mode(kvm, PREFIX + code, cpl)
    handle(guest, 1, b"\x48\xff\xc3" + HLT)  # inc rbx
    handle(guest, 6, HLT)
    return guest


def _break(guest: Guest, dr7: int, *linear: int) -> None:
    debugregs = guest.vcpu.get_debugregs()
    debugregs.db[: len(linear)] = linear
    debugregs.dr7 = DR7_FIXED_1 | dr7
    guest.vcpu.set_debugregs(debugregs)


def _pushed_rip(guest: Guest) -> int:
    return guest.memory.quad(int(guest.vcpu.regs.rsp))


# -- the prefix ----------------------------------------------------------------------------------


def test_the_prefix_is_undefined_unless_it_was_asked_for(vendor: str) -> None:
    guest = _guest(open_kvm(cpu=MODELS[vendor]), NOP + HLT)
    handler = handle(guest, 6, HLT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1
    assert _pushed_rip(guest) == KERNEL_CODE


def test_ud2_without_the_bytes_behind_it_is_undefined(software: Kvm) -> None:
    guest = long_mode(software, UD2 + b"kvn" + HLT)
    handler = handle(guest, 6, HLT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert (guest.vcpu.regs.rip, _pushed_rip(guest)) == (handler + 1, KERNEL_CODE)


@pytest.mark.parametrize("code", [b"\x0f\xff\xc0", UD2, b"\xc5\xf8\x28\xc0"])
def test_what_is_no_instruction_is_undefined_behind_the_prefix(software: Kvm, code: bytes) -> None:
    """EMULTYPE_TRAP_UD_FORCED: #UD at the instruction, no exit to the VMM."""
    guest = _guest(software, code + HLT)
    handler = handle(guest, 6, HLT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert (guest.vcpu.regs.rip, _pushed_rip(guest)) == (handler + 1, EMULATED)


def test_a_fault_points_behind_the_prefix(software: Kvm) -> None:
    guest = _guest(software, b"\x8b\x07" + HLT, cpl=0)
    guest.vcpu.regs.rdi = 0x800000
    handler = handle(guest, 14, HLT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1
    assert guest.memory.quad(int(guest.vcpu.regs.rsp) + 8) == EMULATED  # above the error code


@pytest.mark.parametrize(("parameter", "hits"), [(1, 0), (3, 1)])
def test_bit_1_of_the_parameter_clears_rf(vendor: str, parameter: int, hits: int) -> None:
    """KVM_FEP_CLEAR_RFLAGS_RF: the #UD of the prefix has set RF, which a breakpoint on the
    instruction heeds."""
    kvm = open_kvm(cpu=MODELS[vendor], force_emulation_prefix=parameter)
    guest = _guest(kvm, NOP + HLT)
    _break(guest, GLOBAL_0, EMULATED)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rbx == hits


# -- breakpoints ---------------------------------------------------------------------------------


def test_an_instruction_breakpoint_is_a_fault_before_the_emulated_instruction(
    vendor: str,
) -> None:
    software = open_kvm(cpu=MODELS[vendor], force_emulation_prefix=3)
    guest = _guest(software, b"\x48\xff\xc1" + HLT)  # inc rcx
    _break(guest, GLOBAL_0 << 4, 0, 0, EMULATED)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert (_pushed_rip(guest), guest.vcpu.regs.rcx) == (EMULATED, 0)
    assert guest.vcpu.get_debugregs().dr6 == DR6_ACTIVE_LOW | 4


def test_a_debuggers_instruction_breakpoint_leaves_the_guest(software: Kvm) -> None:
    guest = _guest(software, NOP + HLT)
    guest.vcpu.set_guest_debug(DEBUGGER, {1: EMULATED, 7: DR7_FIXED_1 | GLOBAL_0 << 2})
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Debug)
    assert (exit.exception, exit.pc, exit.dr6) == (1, EMULATED, DR6_ACTIVE_LOW | 2)


def test_a_data_breakpoint_is_a_trap_after_the_emulated_instruction(software: Kvm) -> None:
    guest = _guest(software, b"\x89\x07" + HLT)  # mov [rdi], eax
    guest.vcpu.regs.rdi = DATA
    _break(guest, GLOBAL_0 | 0x1 << 16, DATA + 0)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert _pushed_rip(guest) == EMULATED + 2
    assert guest.vcpu.get_debugregs().dr6 == DR6_ACTIVE_LOW | 1


def test_a_debuggers_data_breakpoint_leaves_the_guest(software: Kvm) -> None:
    guest = _guest(software, b"\x89\x07" + HLT)
    guest.vcpu.regs.rdi = DATA
    guest.vcpu.set_guest_debug(DEBUGGER, {0: DATA, 7: DR7_FIXED_1 | GLOBAL_0 | 0x1 << 16})
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Debug)
    assert (exit.pc, exit.dr6) == (EMULATED + 2, DR6_ACTIVE_LOW | 1)


def test_the_trap_flag_traps_after_the_emulated_instruction(software: Kvm) -> None:
    guest = _guest(software, NOP + HLT)
    guest.vcpu.regs.rflags |= RFLAGS_TF
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert _pushed_rip(guest) == EMULATED + 1
    assert guest.vcpu.get_debugregs().dr6 == DR6_ACTIVE_LOW | DR6_BS


def test_mov_ss_holds_the_trap_back_for_one_instruction(software: Kvm) -> None:
    guest = _guest(software, b"\x8e\xd0" + NOP + NOP + HLT)  # mov ss, eax
    guest.vcpu.regs.rax = 0x10
    guest.vcpu.regs.rflags |= RFLAGS_TF
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert _pushed_rip(guest) == EMULATED + 3


def test_int1_has_no_cause_in_dr6(software: Kvm) -> None:
    guest = _guest(software, b"\xf1" + HLT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rbx == 1
    assert (_pushed_rip(guest), guest.vcpu.get_debugregs().dr6) == (EMULATED + 1, DR6_ACTIVE_LOW)


@pytest.mark.parametrize("code", [b"\x0f\x21\xc0", b"\x0f\x23\xc0", b"\x0f\x21\xf8"])
def test_general_detect_is_a_fault_before_mov_dr(software: Kvm, code: bytes) -> None:
    """check_dr_read(): DR6.BD, and delivery clears DR7.GD."""
    guest = _guest(software, code + HLT)
    _break(guest, DR7_GD)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert _pushed_rip(guest) == EMULATED
    debugregs = guest.vcpu.get_debugregs()
    assert (debugregs.dr6, debugregs.dr7) == (DR6_ACTIVE_LOW | DR6_BD, DR7_FIXED_1)


def test_a_value_that_is_too_wide_comes_before_general_detect(software: Kvm) -> None:
    """check_dr_write(): #GP(0) first."""
    guest = _guest(software, b"\x0f\x23\xf0" + HLT)
    guest.vcpu.regs.rax = 1 << 32
    handler = handle(guest, 13, HLT)
    _break(guest, DR7_GD)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1
    assert guest.vcpu.get_debugregs().dr7 & DR7_GD


def test_a_debuggers_general_detect_leaves_the_guest(software: Kvm) -> None:
    guest = _guest(software, b"\x0f\x21\xc0" + HLT)
    guest.vcpu.set_guest_debug(DEBUGGER, {7: DR7_FIXED_1 | DR7_GD})
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Debug)
    assert (exit.pc, exit.dr6) == (EMULATED, DR6_ACTIVE_LOW | DR6_BD)


def test_mov_dr_sees_the_guests_registers_and_not_the_debuggers(software: Kvm) -> None:
    guest = _guest(software, b"\x0f\x21\xc8" + PREFIX + b"\x0f\x23\xc8" + HLT)  # dr1
    _break(guest, 0, 0, 0x1111)
    guest.vcpu.regs.rax = 5
    guest.vcpu.set_guest_debug(DEBUGGER, {1: 0x2222, 7: DR7_FIXED_1})
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0x1111
    assert guest.vcpu.get_debugregs().db[1] == 0x1111
