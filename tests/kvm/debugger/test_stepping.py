"""Single steps by KVM_SET_GUEST_DEBUG: over everything that has to do with TF."""

from __future__ import annotations

import pytest

from tests.kvm.debugger.support import (
    EXECUTE,
    HARDWARE,
    HLT,
    INTEL,
    IRETQ,
    NOP,
    POPF,
    PUSHF,
    REPORT_DR6,
    SPIN,
    STEP,
    STEPPED,
    SYSCALL,
    SYSRETQ,
    step,
    stop,
    watch,
)
from tests.kvm.guest import DATA, KERNEL_CODE, USER_CODE, handle, long_mode, real_mode
from trapline.arch import msr
from trapline.arch.registers import RFLAGS_IF, RFLAGS_TF
from trapline.kvm import DebugRegs, Kvm, abi, exits


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
    """The step comes after SYSCALL unless IA32_FMASK takes TF away; then after SYSRET, which
    brings TF back from R11 and traps at once (Linux, entry_64.S)."""
    guest = long_mode(kvm, SYSCALL + NOP + NOP + SPIN, cpl=3)
    at = KERNEL_CODE + 0x100
    guest.memory.write(at, NOP + SYSRETQ)
    star = 0x08 << 32 | 0x1B << 48
    mask = RFLAGS_TF if masks_tf else 0
    words = {msr.IA32_STAR: star, msr.IA32_LSTAR: at, msr.IA32_FMASK: mask}
    assert guest.vcpu.set_msrs(words) == 3
    if masks_tf:
        assert [step(guest) for _ in range(2)] == [USER_CODE + 2, USER_CODE + 3]
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
