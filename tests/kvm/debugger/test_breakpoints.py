"""A debugger's breakpoints, by debug registers and by INT3, and what it puts into the guest."""

from __future__ import annotations

import pytest

from tests.kvm.debugger.support import (
    ACCESS,
    ENABLE,
    EXECUTE,
    HARDWARE,
    HLT,
    INT3,
    IO,
    LOAD,
    LOCK_XADD,
    NOP,
    REPORT_DR6,
    SPIN,
    STEP,
    STEPPED,
    STORE,
    WRITE,
    stop,
    watch,
)
from tests.kvm.guest import DATA, KERNEL_CODE, handle, long_mode
from trapline.arch.registers import CR4_DE, RFLAGS_RF
from trapline.kvm import DebugRegs, Kvm, abi, exits


@pytest.mark.parametrize("index", range(4))
def test_an_instruction_breakpoint_stops_before_it_and_rf_passes_it(kvm: Kvm, index: int) -> None:
    guest = long_mode(kvm, NOP + b"\xff\xc0" + HLT)
    dr7 = watch(index, EXECUTE)
    guest.vcpu.set_guest_debug(HARDWARE, {index: KERNEL_CODE + 1, 7: dr7})
    exit = stop(guest)
    assert exit == exits.Debug(1, KERNEL_CODE + 1, 0xFFFF0FF0 | 1 << index, dr7)
    assert guest.vcpu.regs.rax == 0
    assert stop(guest) == exit  # it is still there
    guest.vcpu.regs.rflags |= RFLAGS_RF
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 1


@pytest.mark.parametrize(
    ("code", "kind", "size", "watched", "stops"),
    [
        (STORE, WRITE, 4, DATA, True),
        (LOAD, WRITE, 4, DATA, False),
        (LOAD, ACCESS, 4, DATA, True),
        (STORE, ACCESS, 4, DATA, True),
        (STORE, WRITE, 1, DATA + 3, True),  # the last byte of it
        (STORE, WRITE, 1, DATA + 4, False),
        (STORE, WRITE, 2, DATA + 3, True),  # the low bit of the address is ignored
        (STORE, WRITE, 8, DATA + 7, True),
        (LOCK_XADD, WRITE, 4, DATA, True),
        (b"\xaa", WRITE, 1, DATA, True),  # stosb
    ],
)
def test_watchpoints_stop_after_the_access(
    kvm: Kvm, code: bytes, kind: int, size: int, watched: int, stops: bool
) -> None:
    guest = long_mode(kvm, code + NOP + HLT)
    guest.vcpu.regs.rdi, guest.vcpu.regs.rax = DATA, 7
    dr7 = watch(1, kind, size)
    guest.vcpu.set_guest_debug(HARDWARE, {1: watched, 7: dr7})
    exit = guest.vcpu.run()
    if stops:
        assert exit == exits.Debug(1, KERNEL_CODE + len(code), 0xFFFF0FF2, dr7)
        exit = guest.vcpu.run()
    assert isinstance(exit, exits.Hlt)


def test_a_breakpoint_that_dr7_does_not_enable_is_not_hit(kvm: Kvm) -> None:
    guest = long_mode(kvm, STORE + HLT)
    guest.vcpu.regs.rdi = DATA
    guest.vcpu.set_guest_debug(HARDWARE, {0: DATA, 1: KERNEL_CODE, 7: 0x400 | 0xD << 16})
    assert isinstance(guest.vcpu.run(), exits.Hlt)


def test_io_breakpoints_need_the_guests_cr4_de(kvm: Kvm) -> None:
    """SDM 3B, "Debug Control Register (DR7)"."""
    guest = long_mode(kvm, b"\xe6\x10" + HLT)
    guest.vcpu.set_guest_debug(HARDWARE, {0: 0x10, 7: watch(0, IO)})
    assert isinstance(guest.vcpu.run(), exits.Io)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    sregs = guest.vcpu.get_sregs()
    sregs.cr4 |= CR4_DE
    guest.vcpu.set_sregs(sregs)
    guest.vcpu.regs.rip = KERNEL_CODE
    assert isinstance(guest.vcpu.run(), exits.Io)
    exit = stop(guest)
    assert (exit.exception, exit.pc, exit.dr6) == (1, KERNEL_CODE + 2, 0xFFFF0FF1)


def test_a_step_and_a_watchpoint_are_one_stop(kvm: Kvm) -> None:
    guest = long_mode(kvm, STORE + NOP + HLT)
    guest.vcpu.regs.rdi = DATA
    control = STEP | abi.GUESTDBG_USE_HW_BP
    guest.vcpu.set_guest_debug(control, {2: DATA, 7: watch(2, WRITE, 4)})
    assert stop(guest).dr6 == STEPPED | 4
    assert stop(guest).dr6 == STEPPED


def test_general_detect_is_the_debuggers_while_it_has_the_registers(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x0f\x23\xd8" + HLT)  # mov dr3, rax
    guest.vcpu.set_guest_debug(HARDWARE, {7: 0x400 | 1 << 13})
    assert stop(guest) == exits.Debug(1, KERNEL_CODE, 0xFFFF2FF0, 0x2400)


def test_int3_is_the_debuggers_only_where_it_asks(kvm: Kvm) -> None:
    guest = long_mode(kvm, INT3 + HLT)
    at = handle(guest, 3, HLT)
    guest.vcpu.set_guest_debug(ENABLE | abi.GUESTDBG_USE_SW_BP)
    exit = stop(guest)
    assert (exit.exception, exit.pc) == (3, KERNEL_CODE)
    assert guest.vcpu.regs.rip == KERNEL_CODE
    guest.vcpu.set_guest_debug(STEP)  # without USE_SW_BP
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == at + 1


def test_a_breakpoint_that_is_not_the_debuggers_goes_on_to_the_guest(kvm: Kvm) -> None:
    """INJECT_BP after the exit: the guest's handler returns behind its own INT3."""
    guest = long_mode(kvm, INT3 + NOP + HLT)
    handle(guest, 3, HLT)
    guest.vcpu.set_guest_debug(ENABLE | abi.GUESTDBG_USE_SW_BP)
    stop(guest)
    guest.vcpu.set_guest_debug(ENABLE | abi.GUESTDBG_USE_SW_BP | abi.GUESTDBG_INJECT_BP)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.memory.quad(guest.vcpu.regs.rsp) == KERNEL_CODE + 1


def test_injected_debug_exceptions_have_no_payload(kvm: Kvm) -> None:
    """The guest's DR6 is what userspace made it (KVM_SET_DEBUGREGS)."""
    guest = long_mode(kvm, SPIN)
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.set_debugregs(DebugRegs([0] * 4, 0xFFFF4FF1, 0x400))
    guest.vcpu.set_guest_debug(ENABLE | abi.GUESTDBG_INJECT_DB)
    with pytest.raises(OSError, match="busy"):
        guest.vcpu.set_guest_debug(ENABLE | abi.GUESTDBG_INJECT_BP)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF4FF1
    assert guest.memory.quad(guest.vcpu.regs.rsp) == KERNEL_CODE


def test_control_bits_nobody_knows_mean_nothing(kvm: Kvm) -> None:
    """As on the host's KVM (test_host); KVM_CAP_SET_GUEST_DEBUG2 is how to ask."""
    guest = long_mode(kvm, HLT)
    assert kvm.check_extension(abi.Capability.SET_GUEST_DEBUG2) == 0x1F0003
    guest.vcpu.set_guest_debug(ENABLE | 1 << 21)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
