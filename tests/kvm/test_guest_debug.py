"""A debugger outside the guest (KVM_SET_GUEST_DEBUG): what it is told, and what the guest keeps.

On both vendors with both engines; Linux's own selftest debug_regs is in test_debug_regs.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.kvm.guest import (
    DATA,
    KERNEL_CODE,
    USER_CODE,
    Guest,
    handle,
    long_mode,
    real_mode,
)
from trapline.arch import msr
from trapline.arch.registers import RFLAGS_IF, RFLAGS_RF, RFLAGS_TF
from trapline.kvm import DebugRegs, Kvm, abi, exits, open_kvm

LOCK_XADD = b"\xf0\x0f\xc1\x07"  # lock xadd [rdi], eax
NOP, HLT, INT3, SPIN = b"\x90", b"\xf4", b"\xcc", b"\xeb\xfe"
PUSHF, POPF, IRETQ, SYSCALL, SYSRETQ = b"\x9c", b"\x9d", b"\x48\xcf", b"\x0f\x05", b"\x48\x0f\x07"
LOAD = b"\x8b\x07"  # mov eax, [rdi]
STORE = b"\x89\x07"  # mov [rdi], eax
REPORT_DR6 = b"\x0f\x21\xf0" + HLT  # mov rax, dr6; hlt
SPLIT = DATA + 0x3E
ENABLE, STEP = abi.GUESTDBG_ENABLE, abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP
HARDWARE = abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_HW_BP
STEPPED = 0xFFFF4FF0
INTEL, AMD = "sapphire-rapids", "zen5"
EXECUTE, WRITE, IO, ACCESS = range(4)


@pytest.fixture(params=[INTEL, AMD])
def vendor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["interp", "jit"])
def kvm(vendor: str, request: pytest.FixtureRequest) -> Kvm:
    return open_kvm(cpu=vendor, engine=request.param)


def stop(guest: Guest) -> exits.Debug:
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Debug), exit
    return exit


def step(guest: Guest) -> int:
    """One step, as a debugger does it; where the guest then stands."""
    guest.vcpu.set_guest_debug(STEP)
    exit = stop(guest)
    assert (exit.exception, exit.dr6) == (1, STEPPED)
    assert exit.pc == guest.vcpu.regs.rip
    return exit.pc


def watch(index: int, kind: int, size: int = 1) -> int:
    """DR7 with one breakpoint on, globally."""
    length = {1: 0, 2: 1, 8: 2, 4: 3}[size]
    return 0x400 | 2 << 2 * index | (kind | length << 2) << 16 + 4 * index


# -- single step ----------------------------------------------------------------------------------


def test_each_instruction_is_a_step(kvm: Kvm) -> None:
    """Ordinary ones, and those the hypervisor does itself: CPUID, RDMSR, MOV to CR4."""
    code = [NOP, b"\x31\xc9", b"\x0f\xa2", b"\xb9\x10\0\0\0", b"\x0f\x32", b"\x0f\x20\xe0"]
    code += [b"\x0f\x22\xe0", b"\x0f\x21\xf8", b"\xe8\0\0\0\0", b"\x58"]  # mov rax, dr7; call; pop
    guest = long_mode(kvm, b"".join(code) + HLT)
    at = KERNEL_CODE
    for instruction in code:
        at += len(instruction)
        assert step(guest) == at
    assert guest.vcpu.get_debugregs() == DebugRegs([0] * 4, 0xFFFF0FF0, 0x400)
    guest.vcpu.set_guest_debug(0)
    assert isinstance(guest.vcpu.run(), exits.Hlt)


def test_stepping_goes_on_without_being_asked_again(kvm: Kvm) -> None:
    guest = long_mode(kvm, NOP * 3 + HLT)
    guest.vcpu.set_guest_debug(STEP)
    assert [stop(guest).pc - KERNEL_CODE for _ in range(3)] == [1, 2, 3]


def test_an_output_is_seen_before_the_step_over_it(kvm: Kvm) -> None:
    """KVM_EXIT_IO first, the step when the VMM comes back."""
    guest = long_mode(kvm, b"\xe6\x10" + b"\xe4\x11" + HLT)  # out; in
    guest.vcpu.set_guest_debug(STEP)
    for count in (2, 4):
        assert isinstance(guest.vcpu.run(), exits.Io)
        assert stop(guest).pc == KERNEL_CODE + count


def test_each_iteration_of_a_string_instruction_is_a_step(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\xf3\xa4" + HLT)  # rep movsb
    regs = guest.vcpu.regs
    regs.rcx, regs.rsi, regs.rdi = 3, DATA, DATA + 0x100
    guest.memory.write(DATA, b"abc")
    assert [step(guest) - KERNEL_CODE for _ in range(3)] == [0, 0, 2]
    assert guest.memory.read(DATA + 0x100, 3) == b"abc"


def test_mov_ss_is_stepped_together_with_what_follows(kvm: Kvm) -> None:
    """SDM 3A, "Masking Exceptions and Interrupts When Switching Stacks"."""
    guest = long_mode(kvm, b"\x8e\xd0" + NOP + HLT)  # mov ss, eax
    guest.vcpu.regs.rax = 0x10
    assert step(guest) == KERNEL_CODE + 3


def test_sti_is_a_step_of_its_own(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\xfb" + NOP + HLT)
    assert step(guest) == KERNEL_CODE + 1
    assert step(guest) == KERNEL_CODE + 2


def test_the_debuggers_tf_shows_in_what_pushf_stores_only(kvm: Kvm) -> None:
    """As on KVM: the processor has one TF.  POPF that clears it ends the stepping, until the
    debugger asks again."""
    guest = long_mode(kvm, PUSHF + POPF + NOP + PUSHF + POPF + NOP + HLT)
    assert step(guest) == KERNEL_CODE + 1
    assert guest.memory.quad(guest.vcpu.regs.rsp) & RFLAGS_TF
    assert not guest.vcpu.get_regs().rflags & RFLAGS_TF
    guest.memory.write_quads(guest.vcpu.regs.rsp, 2)
    assert step(guest) == KERNEL_CODE + 2
    assert step(guest) == KERNEL_CODE + 3  # asked again
    assert step(guest) == KERNEL_CODE + 4
    guest.memory.write_quads(guest.vcpu.regs.rsp, 2)
    assert step(guest) == KERNEL_CODE + 5
    assert isinstance(guest.vcpu.run(), exits.Hlt)  # not asked again


def test_int_n_and_its_iret_are_one_step(kvm: Kvm) -> None:
    """The gate clears TF, IRET brings it back, and it counts from the next instruction on."""
    guest = long_mode(kvm, b"\xcd\x40" + NOP + NOP + HLT)
    handle(guest, 0x40, b"\xff\xc3" + IRETQ)  # inc ebx
    assert step(guest) == KERNEL_CODE + 3
    assert guest.vcpu.regs.rbx == 1


def test_a_step_into_a_handler_starts_there(kvm: Kvm) -> None:
    """A debugger that asks while the guest stands in the handler steps the handler."""
    guest = long_mode(kvm, b"\xcd\x40" + HLT)
    at = handle(guest, 0x40, NOP + NOP + IRETQ)
    guest.vcpu.set_guest_debug(HARDWARE, {0: at, 7: watch(0, EXECUTE)})
    assert stop(guest).pc == at
    assert step(guest) == at + 1
    assert step(guest) == at + 2
    assert step(guest) == KERNEL_CODE + 2  # IRETQ, which began with TF set


def test_a_fault_is_the_guests_and_its_handler_is_passed(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x0f\x0b" + NOP + NOP + HLT)  # ud2
    handle(guest, 6, b"\x48\x83\x04\x24\x02" + IRETQ)  # add qword [rsp], 2
    assert step(guest) == KERNEL_CODE + 3


@pytest.mark.parametrize("masks_tf", [False, True])
def test_syscall(kvm: Kvm, masks_tf: bool) -> None:
    """The step comes after SYSCALL unless IA32_FMASK takes TF away; then after what follows
    SYSRET, which brings TF back from R11."""
    guest = long_mode(kvm, SYSCALL + NOP + NOP + SPIN, cpl=3)
    at = KERNEL_CODE + 0x100
    guest.memory.write(at, NOP + SYSRETQ)
    star = 0x08 << 32 | 0x1B << 48
    mask = RFLAGS_TF if masks_tf else 0
    words = {msr.IA32_STAR: star, msr.IA32_LSTAR: at, msr.IA32_FMASK: mask}
    assert guest.vcpu.set_msrs(words) == 3
    if masks_tf:
        assert step(guest) == USER_CODE + 3
    else:
        assert [step(guest) for _ in range(3)] == [at, at + 1, USER_CODE + 2]
    assert guest.vcpu.get_sregs().cs.dpl == 3


def test_hlt_is_stepped_and_still_halts(kvm: Kvm) -> None:
    guest = long_mode(kvm, HLT + NOP + HLT)
    assert step(guest) == KERNEL_CODE + 1
    guest.vcpu.set_guest_debug(0)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == KERNEL_CODE + 1
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == KERNEL_CODE + 3


def test_the_guests_own_single_step_wakes_it_from_hlt(kvm: Kvm) -> None:
    """SDM 2A, HLT: a debug exception resumes execution."""
    guest = long_mode(kvm, HLT + SPIN)
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.regs.rflags = 2 | RFLAGS_TF
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == STEPPED
    assert guest.memory.quad(guest.vcpu.regs.rsp) == KERNEL_CODE + 1


def test_pc_is_linear_in_real_mode(kvm: Kvm) -> None:
    guest = real_mode(kvm, NOP)
    guest.memory.write(0x12340, NOP + HLT)
    sregs = guest.vcpu.get_sregs()
    sregs.cs.base, sregs.cs.selector = 0x12340, 0x1234
    guest.vcpu.set_sregs(sregs)
    guest.vcpu.regs.rip = 0
    guest.vcpu.set_guest_debug(STEP)
    assert stop(guest).pc == 0x12341
    assert guest.vcpu.regs.rip == 1


def test_registers_may_be_changed_between_two_steps(kvm: Kvm) -> None:
    guest = long_mode(kvm, NOP + b"\xff\xc0" + NOP + HLT)  # inc eax
    step(guest)
    regs = guest.vcpu.get_regs()
    assert not regs.rflags & RFLAGS_TF
    regs.rax = 41
    guest.vcpu.set_regs(regs)
    assert step(guest) == KERNEL_CODE + 3
    assert guest.vcpu.regs.rax == 42


# -- hardware breakpoints -------------------------------------------------------------------------


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
    """SDM 3B, "Debug Control Register (DR7)".  The port access leaves the guest, and the
    processor has no access to match."""
    guest = long_mode(kvm, b"\xe6\x10" + HLT)
    guest.vcpu.set_guest_debug(HARDWARE, {0: 0x10, 7: watch(0, IO)})
    assert isinstance(guest.vcpu.run(), exits.Io)
    assert isinstance(guest.vcpu.run(), exits.Hlt)


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


# -- software breakpoints, and what is put into the guest -----------------------------------------


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


def test_control_bits_nobody_knows_are_einval(kvm: Kvm) -> None:
    guest = long_mode(kvm, HLT)
    assert kvm.check_extension(abi.Capability.SET_GUEST_DEBUG2) == 0x1F0003
    with pytest.raises(OSError, match="Invalid argument"):
        guest.vcpu.set_guest_debug(1 << 21)


# -- the guest's own debug registers beside the debugger's ----------------------------------------

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


# -- bus locks seen by a debugger -----------------------------------------------------------------


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


# -- interrupts -----------------------------------------------------------------------------------


def test_a_step_and_an_interrupt_that_waits(kvm: Kvm) -> None:
    """Without BLOCKIRQ the handler's first instruction is not stepped: the gate clears TF."""
    guest = long_mode(kvm, NOP * 4 + HLT)
    handle(guest, 0x40, b"\xff\xc3" + IRETQ)  # inc ebx
    guest.vcpu.regs.rflags = 2 | RFLAGS_IF
    guest.vcpu.interrupt(0x40)
    assert step(guest) == KERNEL_CODE + 1
    assert guest.vcpu.regs.rbx == 1


def test_blockirq_keeps_nmis_away_while_stepping(kvm: Kvm) -> None:
    guest = long_mode(kvm, NOP * 4 + HLT)
    handle(guest, 2, b"\xff\xc3" + IRETQ)
    guest.vcpu.nmi()
    for count in (1, 2):
        guest.vcpu.set_guest_debug(STEP | abi.GUESTDBG_BLOCKIRQ)
        assert stop(guest).pc == KERNEL_CODE + count
    assert guest.vcpu.regs.rbx == 0
    guest.vcpu.set_guest_debug(0)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rbx == 1


def test_int1_stops_a_debugger_on_intel_and_is_the_guests_on_amd(kvm: Kvm, vendor: str) -> None:
    """ICEBP: instruction intercept by the #DB bit of VMX's bitmap; SVM has a bit of its own."""
    guest = long_mode(kvm, b"\xf1" + HLT)
    at = handle(guest, 1, HLT)
    guest.vcpu.set_guest_debug(HARDWARE, {7: 0x400})
    exit = guest.vcpu.run()
    if vendor == INTEL:
        assert exit == exits.Debug(1, KERNEL_CODE, 0xFFFF0FF0, 0x400)
    else:
        assert isinstance(exit, exits.Hlt)
        assert guest.vcpu.regs.rip == at + 1
