"""Debug registers under the hypervisor: payloads into DR6, and a debugger's view of the guest.

The second half is Linux's selftest debug_regs, step by step, on ours and on the host's KVM.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kvm.conftest import is_pvm
from tests.kvm.guest import DATA, KERNEL_CODE, Guest, handle, long_mode
from trapline.arch.debug import DR6_ACTIVE_LOW, DR6_VOLATILE, merge_dr6
from trapline.kvm import Kvm, abi, exits
from trapline.kvm.debug_regs import deliver_payload

HLT = b"\xf4"
PAYLOADS = st.integers(0, 0x1FFFF).map(lambda word: word & 0x1F80F)


@pytest.mark.parametrize(
    ("payload", "dr6"),
    [
        (0x800, 0xFFFF07F0),
        (0x4800, 0xFFFF47F0),
        (0x802, 0xFFFF07F2),
        (0x4809, 0xFFFF47F9),
        (0x4000, 0xFFFF4FF0),
        (0, 0xFFFF0FF0),
        (0x2000, 0xFFFF2FF0),
        (0x10000, 0xFFFE0FF0),
        (0x1002, 0xFFFF0FF2),
    ],
)
def test_payloads_become_dr6(payload: int, dr6: int) -> None:
    """The worked examples; bit 12 of a payload has no place in DR6."""
    assert deliver_payload(DR6_ACTIVE_LOW, payload) == dr6


@given(st.integers(0, 0xFFFFFFFF), PAYLOADS)
def test_delivery_is_the_processors_and_upstreams_differs_only_in_bit_11(
    word: int, payload: int
) -> None:
    """A 0 that software left in DR6[11] stands on the processor and is lost in upstream's."""
    dr6 = word & DR6_VOLATILE | DR6_ACTIVE_LOW & ~DR6_VOLATILE
    silicon = merge_dr6(dr6, payload & ~(1 << 12), has_bld=True, has_rtm=True)
    assert deliver_payload(dr6, payload) == silicon
    upstream = deliver_payload(dr6, payload, sets_bus_lock=True)
    assert upstream | 0x800 == silicon | 0x800
    assert bool(upstream & 0x800) == (not payload & 0x800)


@given(PAYLOADS)
def test_a_fresh_dr6_is_the_payload_with_the_active_low_bits_turned(payload: int) -> None:
    """DR6 XOR 0xFFFF0FF0 is the positive form, both ways."""
    payload &= ~(1 << 12)
    assert deliver_payload(DR6_ACTIVE_LOW, payload) ^ DR6_ACTIVE_LOW == payload


def test_set_debugregs_keeps_values_as_they_are(kvm: Kvm) -> None:
    """KVM_SET_DEBUGREGS forces no bit, and refuses upper halves."""
    guest = long_mode(kvm, HLT)
    debugregs = guest.vcpu.get_debugregs()
    assert (debugregs.db, debugregs.dr6, debugregs.dr7) == ([0] * 4, 0xFFFF0FF0, 0x400)
    debugregs.dr6 = 1 << 32
    with pytest.raises(OSError, match="Invalid argument"):
        guest.vcpu.set_debugregs(debugregs)
    guest.close()


def test_the_guest_reads_what_it_wrote(kvm: Kvm) -> None:
    """MOV DR both ways, reserved bits forced, and userspace sees it afterwards."""
    write = b"\x0f\x23\xd3" + b"\x0f\x23\xf9"  # mov dr2, rbx; mov dr7, rcx
    read = b"\x0f\x21\xd6" + b"\x0f\x21\xff" + HLT  # mov rsi, dr2; mov rdi, dr7
    guest = long_mode(kvm, write + read)
    guest.vcpu.regs.rbx, guest.vcpu.regs.rcx = 0x1234, 0xC020
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rsi == 0x1234
    assert guest.vcpu.regs.rdi == 0x420
    assert guest.vcpu.get_debugregs().db[2] == 0x1234
    assert guest.vcpu.get_debugregs().dr7 == 0x420
    guest.close()


@pytest.mark.parametrize("register", [6, 7])
def test_upper_halves_of_dr6_and_dr7_are_gp(kvm: Kvm, register: int) -> None:
    guest = long_mode(kvm, bytes([0x0F, 0x23, 0xC0 | register << 3]) + HLT)
    handler = handle(guest, 13, HLT)
    guest.vcpu.regs.rax = 1 << 32
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1
    guest.close()


# -- the selftest -------------------------------------------------------------------------------

INT3, NOP, STORE = b"\xcc", b"\x90", b"\x48\x89\x04\x25\x00\x00\x05\x00"  # mov [DATA], rax
# sti; xor eax, eax; cpuid; mov ecx, IA32_TSC; rdmsr; cli
STEPPED = b"\xfb" + b"\x31\xc0" + b"\x0f\xa2" + b"\xb9\x10\x00\x00\x00" + b"\x0f\x32" + b"\xfa"
LENGTHS = (1, 2, 2, 5, 2, 1)
READ_DR0 = b"\x0f\x21\xc0"
CODE = INT3 + NOP + STORE + STEPPED + READ_DR0 + HLT
AT_NOP = KERNEL_CODE + 1
AT_STORE = AT_NOP + 1
AT_STEPPED = AT_STORE + len(STORE)
AT_READ_DR0 = AT_STEPPED + len(STEPPED)
ENABLE = abi.GUESTDBG_ENABLE


@pytest.fixture
def debugged(kvm: Kvm) -> Guest:
    return long_mode(kvm, CODE)


@pytest.fixture
def trapped(kvm: Kvm) -> Guest:
    """As `debugged`, where the processor's own #DB and #BP reach the debugger."""
    if is_pvm(kvm):
        pytest.skip("PVM keeps #DB and #BP of a guest's kernel from the debugger")
    return long_mode(kvm, CODE)


def debug_exit(guest: Guest) -> exits.Debug:
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Debug)
    return exit


def test_software_breakpoints_exit(trapped: Guest) -> None:
    trapped.vcpu.set_guest_debug(ENABLE | abi.GUESTDBG_USE_SW_BP)
    exit = debug_exit(trapped)
    assert (exit.exception, exit.pc) == (3, KERNEL_CODE)
    trapped.close()


@pytest.mark.parametrize("i", range(4))
def test_hardware_breakpoints_exit(debugged: Guest, i: int) -> None:
    debugged.vcpu.regs.rip = AT_NOP
    control = ENABLE | abi.GUESTDBG_USE_HW_BP
    debugged.vcpu.set_guest_debug(control, {i: AT_NOP, 7: 0x400 | 1 << (2 * i + 1)})
    exit = debug_exit(debugged)
    assert (exit.exception, exit.pc, exit.dr6) == (1, AT_NOP, 0xFFFF0FF0 | 1 << i)
    debugged.close()


@pytest.mark.parametrize("i", range(4))
def test_watchpoints_exit_after_the_store(trapped: Guest, i: int) -> None:
    trapped.vcpu.regs.rip = AT_STORE
    dr7 = 0x400 | 1 << (2 * i + 1) | 0x000D0000 << (4 * i)
    trapped.vcpu.set_guest_debug(ENABLE | abi.GUESTDBG_USE_HW_BP, {i: DATA, 7: dr7})
    exit = debug_exit(trapped)
    assert (exit.exception, exit.pc, exit.dr6) == (1, AT_STEPPED, 0xFFFF0FF0 | 1 << i)
    trapped.close()


def test_single_stepping_passes_emulated_instructions(debugged: Guest) -> None:
    debugged.vcpu.regs.rip = AT_STEPPED
    control = ENABLE | abi.GUESTDBG_SINGLESTEP | abi.GUESTDBG_BLOCKIRQ
    target = AT_STEPPED
    for length in LENGTHS:
        target += length
        debugged.vcpu.set_guest_debug(control, {7: 0x400})
        exit = debug_exit(debugged)
        assert (exit.exception, exit.pc, exit.dr6) == (1, target, 0xFFFF4FF0)
    assert not debugged.vcpu.get_regs().rflags & 0x100  # the TF was not the guest's
    assert not debugged.vcpu.regs.rflags & 0x100
    debugged.close()


def test_general_detect_exits(trapped: Guest) -> None:
    trapped.vcpu.regs.rip = AT_READ_DR0
    control = ENABLE | abi.GUESTDBG_USE_HW_BP
    trapped.vcpu.set_guest_debug(control, {7: 0x400 | 1 << 13})
    exit = debug_exit(trapped)
    assert (exit.exception, exit.pc, exit.dr6) == (1, AT_READ_DR0, 0xFFFF2FF0)
    trapped.close()


def test_without_a_debugger_the_guest_runs_through(debugged: Guest) -> None:
    debugged.vcpu.regs.rip = AT_NOP
    debugged.vcpu.set_guest_debug(ENABLE | abi.GUESTDBG_SINGLESTEP)
    debug_exit(debugged)
    debugged.vcpu.set_guest_debug(0)
    assert isinstance(debugged.vcpu.run(), exits.Hlt)
    debugged.close()


def test_the_guests_breakpoints_come_back_after_the_debuggers(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x0f\x21\xc8" + HLT)  # mov rax, dr1
    debugregs = guest.vcpu.get_debugregs()
    debugregs.db[1] = 0x5555
    guest.vcpu.set_debugregs(debugregs)
    guest.vcpu.set_guest_debug(ENABLE | abi.GUESTDBG_USE_HW_BP, {1: 0x7777, 7: 0x400})
    assert guest.vcpu.get_debugregs().db[1] == 0x5555
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0x5555
    guest.vcpu.set_guest_debug(0)
    assert guest.vcpu.get_debugregs().db[1] == 0x5555
    guest.close()


def test_injecting_a_debug_exception_leaves_dr6_alone(kvm: Kvm) -> None:
    """KVM_GUESTDBG_INJECT_DB has no payload; a second one is EBUSY."""
    guest = long_mode(kvm, HLT)
    handle(guest, 1, b"\x0f\x21\xf0" + HLT)
    guest.vcpu.set_guest_debug(ENABLE | abi.GUESTDBG_INJECT_DB)
    with pytest.raises(OSError, match="busy"):
        guest.vcpu.set_guest_debug(ENABLE | abi.GUESTDBG_INJECT_DB)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF0FF0
    guest.close()
