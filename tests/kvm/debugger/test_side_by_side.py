"""The guest's own debug registers and bus locks beside a debugger's."""

from __future__ import annotations

from collections.abc import Mapping

from tests.kvm.debugger.support import (
    ENABLE,
    EXECUTE,
    HARDWARE,
    LOCK_XADD,
    NOP,
    REPORT_DR6,
    SPIN,
    SPLIT,
    STEP,
    STEPPED,
    STORE,
    WRITE,
    stop,
    watch,
)
from tests.kvm.guest import DATA, KERNEL_CODE, USER_CODE, Guest, handle, long_mode
from trapline.arch import msr
from trapline.kvm import DebugRegs, Kvm, abi, exits

SET_DR0_DR7 = b"\x0f\x23\xc3" + b"\x0f\x23\xf9"  # mov dr0, rbx; mov dr7, rcx
READ_DR0_DR7 = b"\x0f\x21\xc6" + b"\x0f\x21\xfa"  # mov rsi, dr0; mov rdx, dr7


def debugging(guest: Guest, control: int, debugreg: Mapping[int, int]) -> None:
    """A debugger, and a guest that watches DATA with its own DR0."""
    regs = guest.vcpu.regs
    regs.rbx, regs.rcx, regs.rdi = DATA, watch(0, WRITE, 4), DATA
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.set_guest_debug(control, debugreg)


def test_the_guest_reads_its_own_and_the_debuggers_count(kvm: Kvm) -> None:
    """USE_HW_BP: the guest's DR0 and DR7 are kept for it, and match again afterwards."""
    code = SET_DR0_DR7 + READ_DR0_DR7 + STORE + NOP + STORE + SPIN
    guest = long_mode(kvm, code)
    stop_at = KERNEL_CODE + len(SET_DR0_DR7 + READ_DR0_DR7 + STORE)
    debugging(guest, HARDWARE, {3: stop_at, 7: watch(3, EXECUTE)})
    assert stop(guest).dr6 == 0xFFFF0FF8  # not the guest's write breakpoint just before
    regs = guest.vcpu.regs
    assert (regs.rsi, regs.rdx) == (DATA, watch(0, WRITE, 4))
    debugregs = guest.vcpu.get_debugregs()
    assert (debugregs.db, debugregs.dr7) == ([DATA, 0, 0, 0], watch(0, WRITE, 4))
    guest.vcpu.set_guest_debug(0)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert regs.rax == 0xFFFF0FF1
    assert guest.memory.quad(regs.rsp) == stop_at + 1 + len(STORE)


def test_userspace_sets_the_guests_while_the_debuggers_are_in_force(kvm: Kvm) -> None:
    guest = long_mode(kvm, STORE + NOP + SPIN)
    debugging(guest, HARDWARE, {1: KERNEL_CODE + 2, 7: watch(1, EXECUTE)})
    guest.vcpu.set_debugregs(DebugRegs([DATA, 5, 6, 7], 0xFFFF0FF0, watch(0, WRITE, 4)))
    assert stop(guest).dr6 == 0xFFFF0FF2
    assert guest.vcpu.get_debugregs().db == [DATA, 5, 6, 7]
    guest.vcpu.regs.rip = KERNEL_CODE
    guest.vcpu.set_guest_debug(0)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF0FF1


def test_a_stepping_debugger_takes_the_guests_own_hits_too(kvm: Kvm) -> None:
    """As upstream: with SINGLESTEP or USE_HW_BP every #DB is the debugger's; DR6 stays."""
    guest = long_mode(kvm, SET_DR0_DR7 + STORE + SPIN)
    debugging(guest, STEP, {})
    assert [stop(guest).dr6 for _ in range(3)] == [STEPPED, STEPPED, STEPPED | 1]
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF0FF0


def test_a_debugger_with_software_breakpoints_only_leaves_them_to_the_guest(kvm: Kvm) -> None:
    guest = long_mode(kvm, SET_DR0_DR7 + STORE + SPIN)
    debugging(guest, ENABLE | abi.GUESTDBG_USE_SW_BP, {})
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF0FF1


def test_the_guests_general_detect_is_its_own_while_it_is_stepped(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x0f\x21\xc6" + SPIN)  # mov rsi, dr0
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.set_debugregs(DebugRegs([0] * 4, 0xFFFF0FF0, 0x2400))
    guest.vcpu.set_guest_debug(STEP)
    assert isinstance(guest.vcpu.run(), exits.Hlt)  # the handler: its gate clears TF
    assert guest.vcpu.regs.rax == 0xFFFF2FF0
    assert guest.memory.quad(guest.vcpu.regs.rsp) == KERNEL_CODE
    assert guest.vcpu.get_debugregs().dr7 == 0x400


# -- bus locks ------------------------------------------------------------------------------------


def locking(kvm: Kvm, control: int, debugreg: Mapping[int, int]) -> Guest:
    guest = long_mode(kvm, LOCK_XADD + NOP + SPIN, cpl=3)
    guest.vcpu.set_msrs({msr.IA32_DEBUGCTL: msr.DEBUGCTL_BLD})
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.regs.rdi, guest.vcpu.regs.rax = SPLIT, 1
    guest.vcpu.set_guest_debug(control, debugreg)
    return guest


def test_step_watchpoint_and_bus_lock_are_one_stop(kvm: Kvm) -> None:
    guest = locking(kvm, STEP | abi.GUESTDBG_USE_HW_BP, {0: SPLIT & -4, 7: watch(0, WRITE, 4)})
    assert stop(guest).dr6 == 0xFFFF47F1
    assert stop(guest).dr6 == STEPPED  # the next one shows no stale bus lock
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF0FF0


def test_the_guests_own_bus_lock_exception_stops_the_debugger_and_can_be_given_back(
    kvm: Kvm,
) -> None:
    """The VMM hands it on as a payload, in positive polarity (KVM_CAP_EXCEPTION_PAYLOAD)."""
    guest = locking(kvm, HARDWARE, {7: 0x400})
    exit = stop(guest)
    assert (exit.pc, exit.dr6) == (USER_CODE + len(LOCK_XADD), 0xFFFF07F0)
    guest.vm.enable_cap(abi.Capability.EXCEPTION_PAYLOAD, 1)
    events = guest.vcpu.get_vcpu_events()
    events.exception_pending, events.exception_nr = 1, 1
    events.exception_has_payload, events.exception_payload = 1, exit.dr6 ^ 0xFFFF0FF0
    events.flags |= abi.VCPUEVENT_VALID_PAYLOAD
    guest.vcpu.set_vcpu_events(events)
    guest.vcpu.set_guest_debug(0)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF07F0


def test_without_a_stepping_debugger_the_bus_lock_is_the_guests(kvm: Kvm) -> None:
    guest = locking(kvm, ENABLE | abi.GUESTDBG_USE_SW_BP, {})
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF07F0
