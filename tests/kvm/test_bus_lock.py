"""The bus lock's way through the hypervisor: KVM's "bus lock debug exception" for guests.

Every guest locks the bus with a real instruction; what it reads from DR6 is what counts.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.kvm.guest import (
    DATA,
    KERNEL_CODE,
    USER_CODE,
    Guest,
    handle,
    long_mode,
)
from trapline.arch import cpuid, paging
from trapline.arch.cpuid import CpuidEntry
from trapline.arch.msr import DEBUGCTL_BLD, DEBUGCTL_BTF, DEBUGCTL_LBR, IA32_DEBUGCTL, IA32_PAT
from trapline.arch.registers import RFLAGS_TF
from trapline.arch.vmx import REASON_BUS_LOCK, ExitReason
from trapline.kvm import Kvm, abi, exits, open_kvm
from trapline.kvm.vmx import backend
from trapline.processor import BusLock, Cause, Core, Outcome, Vmcs, VmExit, enter

LOCK_XADD = b"\xf0\x0f\xc1\x07"  # lock xadd [rdi], eax
OUT = b"\xe6\x10"  # out 0x10, al
HLT = b"\xf4"
SPLIT = DATA + 0x3E
REPORT_DR6 = b"\x0f\x21\xf0" + HLT  # mov rax, dr6; hlt
WRMSR = b"\x0f\x30"


def user_guest(kvm: Kvm, code: bytes, rdi: int = SPLIT) -> Guest:
    """CPL 3 with DEBUGCTL.BLD set and a handler that halts with DR6 in RAX."""
    guest = long_mode(kvm, code, cpl=3)
    assert guest.vcpu.set_msrs({IA32_DEBUGCTL: DEBUGCTL_BLD}) == 1
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.regs.rdi, guest.vcpu.regs.rax = rdi, 1
    return guest


def saved_rip(guest: Guest) -> int:
    """The RIP that the handler's frame holds."""
    return guest.memory.quad(guest.vcpu.regs.rsp)


def test_a_bus_lock_at_cpl_3_clears_dr6_bit_11(software: Kvm) -> None:
    """Exit qualification bit 11, payload, DR6[11] = 0; the lock itself has been done."""
    guest = user_guest(software, LOCK_XADD + b"\xeb\xfe")
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF07F0
    assert saved_rip(guest) == USER_CODE + len(LOCK_XADD)
    assert int.from_bytes(guest.memory.read(SPLIT, 4), "little") == 1


@pytest.mark.parametrize(
    ("offset", "expected"), [(0x3C, None), (0x3D, 0xFFFF07F0), (0x3F, 0xFFFF07F0), (0x40, None)]
)
def test_only_a_split_is_a_bus_lock(software: Kvm, offset: int, expected: int | None) -> None:
    guest = user_guest(software, LOCK_XADD + b"\x0f\x0b", DATA + offset)
    handle(guest, 6, b"\x31\xc0" + HLT)  # ud2 after the lock: xor eax, eax; hlt
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == (expected or 0)


def test_no_debug_exception_at_cpl_0(software: Kvm) -> None:
    guest = long_mode(software, LOCK_XADD + HLT)
    guest.vcpu.set_msrs({IA32_DEBUGCTL: DEBUGCTL_BLD})
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.regs.rdi = SPLIT
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == KERNEL_CODE + len(LOCK_XADD) + 1


def test_a_bus_lock_joins_a_single_step(software: Kvm) -> None:
    """One #DB for both (reference A.6)."""
    guest = user_guest(software, LOCK_XADD + b"\xeb\xfe")
    guest.vcpu.regs.rflags = 2 | RFLAGS_TF
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF47F0
    assert saved_rip(guest) == USER_CODE + len(LOCK_XADD)


def test_a_bus_lock_joins_a_data_breakpoint(software: Kvm) -> None:
    guest = user_guest(software, LOCK_XADD + b"\xeb\xfe")
    debugregs = guest.vcpu.get_debugregs()
    debugregs.db[1], debugregs.dr7 = DATA + 0x3C, 0x400 | 1 << 2 | 0xD << 20  # write, 4 bytes
    guest.vcpu.set_debugregs(debugregs)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF07F2


def test_a_0_that_the_handler_left_in_bit_11_stands(software: Kvm) -> None:
    """As on the processor (reference I); upstream's payload delivery is a quirk."""
    guest = user_guest(software, LOCK_XADD + b"\x90\xeb\xfe")
    # First #DB: set TF in the saved RFLAGS and go on; the second one, after the nop, reports.
    again = b"\x48\x85\xdb\x75\x0d" + b"\x48\xff\xc3"  # test rbx, rbx; jnz +13; inc rbx
    again += b"\x81\x4c\x24\x10\x00\x01\x00\x00" + b"\x48\xcf"  # or dword [rsp+16], 0x100; iretq
    handle(guest, 1, again + REPORT_DR6)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF47F0
    assert saved_rip(guest) == USER_CODE + len(LOCK_XADD) + 1


def test_a_locked_access_to_uncached_memory_is_a_bus_lock(software: Kvm) -> None:
    """The guest's PAT is honoured through EPT."""
    guest = user_guest(software, LOCK_XADD + b"\xeb\xfe", 0x200000)
    guest.memory.write_quads(0x3008, 0x200000 | 0x87 | paging.PTE_PCD | paging.PTE_PWT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF07F0
    assert guest.vcpu.get_msrs([IA32_PAT]) == {IA32_PAT: paging.PAT_RESET}


# -- who may set BLD ----------------------------------------------------------------------------


def hidden(entries: list[CpuidEntry]) -> list[CpuidEntry]:
    """The same leaves without BUS_LOCK_DETECT."""
    mask = ~cpuid.BUS_LOCK_DETECT.mask
    return [
        replace(entry, ecx=entry.ecx & mask) if entry.function == 7 else entry for entry in entries
    ]


def debugctl_guest(kvm: Kvm, word: int) -> Guest:
    guest = long_mode(kvm, WRMSR + b"\x0f\x32" + HLT)  # wrmsr; rdmsr; hlt
    regs = guest.vcpu.regs
    regs.rcx, regs.rax, regs.rdx = IA32_DEBUGCTL, word, 0
    return guest


def test_cpuid_shows_bus_lock_detection_and_the_guest_may_set_it(software: Kvm) -> None:
    assert cpuid.has(software.get_supported_cpuid(), cpuid.BUS_LOCK_DETECT)
    guest = debugctl_guest(software, DEBUGCTL_BLD)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == DEBUGCTL_BLD
    assert guest.vcpu.get_msrs([IA32_DEBUGCTL]) == {IA32_DEBUGCTL: DEBUGCTL_BLD}


def test_a_guest_that_is_not_shown_the_feature_gets_gp(software: Kvm) -> None:
    """vmx_set_msr(): BLD without the guest's CPUID bit is refused; userspace may still set it."""
    guest = debugctl_guest(software, DEBUGCTL_BLD)
    guest.vcpu.set_cpuid2(hidden(software.get_supported_cpuid()))
    handler = handle(guest, 13, HLT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1
    assert guest.memory.quad(guest.vcpu.regs.rsp) == 0  # error code
    assert guest.memory.quad(guest.vcpu.regs.rsp + 8) == KERNEL_CODE
    assert guest.vcpu.get_msrs([IA32_DEBUGCTL]) == {IA32_DEBUGCTL: 0}
    assert guest.vcpu.set_msrs({IA32_DEBUGCTL: DEBUGCTL_BLD}) == 1


def test_a_processor_without_the_feature_refuses_even_userspace() -> None:
    kvm = open_kvm(cpu="icelake")
    assert not cpuid.has(kvm.get_supported_cpuid(), cpuid.BUS_LOCK_DETECT)
    assert long_mode(kvm, HLT).vcpu.set_msrs({IA32_DEBUGCTL: DEBUGCTL_BLD}) == 0


def test_lbr_and_btf_are_dropped_silently_and_other_bits_are_gp(software: Kvm) -> None:
    guest = debugctl_guest(software, DEBUGCTL_BLD | DEBUGCTL_BTF | DEBUGCTL_LBR)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == DEBUGCTL_BLD
    guest = debugctl_guest(software, 1 << 6)
    handler = handle(guest, 13, HLT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1


def test_dr6_bit_11_is_fixed_where_the_guest_is_not_shown_the_feature(software: Kvm) -> None:
    """kvm_dr6_fixed(), where the hypervisor emulates MOV DR6."""
    shown = software.get_supported_cpuid()
    for leaves, dr6 in ((hidden(shown), 0xFFFF0FF0), (shown, 0xFFFF07F0)):
        guest = long_mode(software, b"\x0f\x23\xf0\x0f\x21\xf3" + HLT)  # mov dr6, rax; rbx, dr6
        guest.vcpu.set_cpuid2(leaves)
        guest.vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_HW_BP, {7: 0x400})
        assert isinstance(guest.vcpu.run(), exits.Hlt)
        assert guest.vcpu.regs.rbx == dr6


# -- debuggers ----------------------------------------------------------------------------------


def test_a_debugger_takes_the_debug_exception_and_sees_the_bus_lock(software: Kvm) -> None:
    """handle_exception_nmi(), with the causes in DR6's polarity; upstream's OR is a quirk."""
    guest = user_guest(software, LOCK_XADD + b"\xeb\xfe")
    guest.vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP)
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Debug)
    assert (exit.exception, exit.pc, exit.dr6) == (1, USER_CODE + len(LOCK_XADD), 0xFFFF47F0)


# -- the bus-lock VM exit -----------------------------------------------------------------------


def exiting_guest(kvm: Kvm, code: bytes, cpl: int = 0) -> Guest:
    """A guest whose vCPU was made after KVM_CAP_X86_BUS_LOCK_EXIT was enabled on its VM."""
    guest = long_mode(kvm, code, cpl)
    assert guest.vm.check_extension(abi.Capability.X86_BUS_LOCK_EXIT) == 3
    guest.vm.enable_cap(abi.Capability.X86_BUS_LOCK_EXIT, abi.BUS_LOCK_DETECTION_EXIT)
    first = guest.vcpu
    guest.vcpu = guest.vm.create_vcpu(1)
    guest.vcpu.set_cpuid2(kvm.get_supported_cpuid())
    guest.vcpu.set_sregs(first.get_sregs())
    guest.vcpu.set_regs(first.get_regs())
    guest.vcpu.regs.rdi = SPLIT
    return guest


def test_each_bus_lock_exits_after_it_was_done(software: Kvm) -> None:
    """kvm_buslock_test: a hundred locks, a hundred exits 33, the counter already moved."""
    loop = b"\xf0\xff\x07" + b"\xe2\xfb" + HLT  # lock inc dword [rdi]; loop; hlt
    guest = exiting_guest(software, loop)
    guest.vcpu.regs.rcx = 100
    for count in range(1, 101):
        assert isinstance(guest.vcpu.run(), exits.X86BusLock)
        assert guest.vcpu.flags == abi.RUN_X86_BUS_LOCK
        assert int.from_bytes(guest.memory.read(SPLIT, 4), "little") == count
        assert guest.vcpu.regs.rip == KERNEL_CODE + 3
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.flags == 0


def test_the_bus_lock_exit_comes_before_the_debug_exception(software: Kvm) -> None:
    """Both enabled: exit 74 leaves bit 11 pending, and re-entry delivers the #DB."""
    guest = exiting_guest(software, LOCK_XADD + b"\xeb\xfe", cpl=3)
    guest.vcpu.set_msrs({IA32_DEBUGCTL: DEBUGCTL_BLD})
    handle(guest, 1, REPORT_DR6)
    assert isinstance(guest.vcpu.run(), exits.X86BusLock)
    assert guest.vcpu.regs.rip == USER_CODE + len(LOCK_XADD)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF07F0
    assert saved_rip(guest) == USER_CODE + len(LOCK_XADD)


def test_the_capability_refuses_what_kvm_refuses(software: Kvm) -> None:
    vm = software.create_vm()
    for modes in (3, 4):
        with pytest.raises(OSError, match="Invalid argument"):
            vm.enable_cap(abi.Capability.X86_BUS_LOCK_EXIT, modes)


@pytest.mark.parametrize("has_bit", [False, True])
def test_hardware_may_leave_bit_26_of_exit_74_clear(
    monkeypatch: pytest.MonkeyPatch, has_bit: bool
) -> None:
    """handle_bus_lock_vmexit() (d61863c66f9b): flag and exit all the same."""

    def enter_and_change(core: Core, vmcs: Vmcs) -> VmExit:
        exit = enter(core, vmcs)
        if exit.reason & 0xFFFF == ExitReason.BUS_LOCK and not has_bit:
            assert exit.reason & REASON_BUS_LOCK  # ours has it
            exit.reason &= ~REASON_BUS_LOCK
        return exit

    monkeypatch.setattr(backend, "enter", enter_and_change)
    guest = exiting_guest(open_kvm(engine="interp"), LOCK_XADD + HLT)
    assert isinstance(guest.vcpu.run(), exits.X86BusLock)
    assert guest.vcpu.flags == abi.RUN_X86_BUS_LOCK


def test_bit_26_of_another_exit_is_a_flag_beside_its_own_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vmx_handle_exit(): KVM_EXIT_HLT stays one; an exit that is handled inside becomes 33."""

    def enter_and_change(core: Core, vmcs: Vmcs) -> VmExit:
        exit = enter(core, vmcs)
        if exit.reason in (ExitReason.HLT, ExitReason.CPUID):
            exit.reason |= REASON_BUS_LOCK
        return exit

    monkeypatch.setattr(backend, "enter", enter_and_change)
    guest = long_mode(open_kvm(engine="interp"), b"\x0f\xa2" + HLT)
    assert isinstance(guest.vcpu.run(), exits.X86BusLock)
    assert guest.vcpu.regs.rip == KERNEL_CODE + 2
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.flags == abi.RUN_X86_BUS_LOCK


# -- who looks on -------------------------------------------------------------------------------


class Recorder:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.locks: list[tuple[BusLock, Outcome]] = []
        self.totals = 0

    def bus_lock(self, lock: BusLock, outcome: Outcome) -> None:
        self.locks.append((lock, outcome))

    def bus_lock_total(
        self, rip: int, next_rip: int, cause: Cause, size: int, cpl: int, linear: int, count: int
    ) -> None:
        self.totals += count

    def undefined(self, rip: int, code: bytes, text: str) -> None:
        raise AssertionError(text)


@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_the_observer_sees_the_bus_lock_that_the_guest_is_told_of(engine: str) -> None:
    recorder = Recorder()
    kvm = open_kvm(engine=engine, observer=recorder)
    guest = user_guest(kvm, LOCK_XADD + b"\xeb\xfe")
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    ((lock, outcome),) = recorder.locks
    assert outcome is Outcome.DB
    assert (lock.rip, lock.next_rip, lock.linear) == (USER_CODE, USER_CODE + 4, SPLIT)
    assert (lock.size, lock.cpl, lock.cause) == (4, 3, Cause.SPLIT)
