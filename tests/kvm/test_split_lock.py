"""Split-lock #AC for guests: MSR_TEST_CTRL is theirs, the fault comes before the access.

Reference: Intel's #AC for split locks (MSR 0x33 bit 29), any CPL, whatever CR0.AM and RFLAGS.AC.
"""

from __future__ import annotations

import pytest

from tests.kvm.guest import DATA, KERNEL_CODE, USER_CODE, Guest, handle, long_mode
from trapline.arch import msr, paging
from trapline.arch.registers import CR0_AM, RFLAGS_AC
from trapline.kvm import Kvm, abi, exits, open_kvm

LOCK_XADD, HLT, SPIN = b"\xf0\x0f\xc1\x07", b"\xf4", b"\xeb\xfe"
SPLIT = DATA + 0x3E
SPLIT_LOCK_AC = msr.TEST_CTRL_SPLIT_LOCK_AC
REPORT_DR6 = b"\x0f\x21\xf0" + HLT  # mov rax, dr6; hlt


@pytest.fixture(params=["interp", "jit"])
def intel(request: pytest.FixtureRequest) -> Kvm:
    return open_kvm(engine=request.param)


def guest_of(kvm: Kvm, code: bytes, cpl: int, test_ctrl: int = SPLIT_LOCK_AC) -> Guest:
    guest = long_mode(kvm, code + SPIN, cpl=cpl)
    words = {msr.IA32_DEBUGCTL: msr.DEBUGCTL_BLD, msr.TEST_CTRL: test_ctrl}
    assert guest.vcpu.set_msrs(words) == 2
    handle(guest, 1, REPORT_DR6)
    handle(guest, 17, b"\xb8\x11\0\0\0" + HLT)  # mov eax, 17; hlt
    guest.vcpu.regs.rdi, guest.vcpu.regs.rax = SPLIT, 1
    return guest


def frame(guest: Guest, words: int) -> list[int]:
    rsp = guest.vcpu.regs.rsp
    return [guest.memory.quad(rsp + 8 * i) for i in range(words)]


@pytest.mark.parametrize("cpl", [0, 3])
def test_a_split_lock_faults_before_the_access_at_any_cpl(intel: Kvm, cpl: int) -> None:
    """#AC(0), RIP the instruction, memory as it was; BLD is on too and has nothing to say."""
    guest = guest_of(intel, LOCK_XADD, cpl)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 17
    assert frame(guest, 2) == [0, USER_CODE if cpl else KERNEL_CODE]
    assert guest.memory.read(SPLIT, 4) == bytes(4)
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF0FF0


def test_the_instruction_done_again_with_the_bit_off_traps(intel: Kvm) -> None:
    """The #AC handler clears bit 29 and returns: now the bus is locked, and BLD says so."""
    guest = guest_of(intel, LOCK_XADD, 3)
    off = b"\x50\x51\x52" + b"\xb9\x33\0\0\0" + b"\x31\xc0\x31\xd2" + b"\x0f\x30"  # push; wrmsr
    handle(guest, 17, off + b"\x5a\x59\x58" + b"\x48\x83\xc4\x08" + b"\x48\xcf")  # pop; iretq
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF07F0
    assert frame(guest, 1) == [USER_CODE + len(LOCK_XADD)]
    assert guest.memory.read(SPLIT, 4) == b"\x01\0\0\0"
    assert guest.vcpu.get_msrs([msr.TEST_CTRL]) == {msr.TEST_CTRL: 0}


def test_a_lock_inside_one_line_and_a_plain_split_access_pass(intel: Kvm) -> None:
    guest = guest_of(intel, LOCK_XADD + b"\x8b\x07\x0f\x0b", 0)  # mov eax, [rdi]; ud2
    handle(guest, 6, HLT)
    guest.vcpu.regs.rdi = DATA + 0x3C
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    regs = guest.vcpu.regs
    assert regs.rax == 1
    regs.rip, regs.rdi = KERNEL_CODE + len(LOCK_XADD), SPLIT
    assert isinstance(guest.vcpu.run(), exits.Hlt)


def test_a_lock_on_uncached_memory_is_still_a_bus_lock(intel: Kvm) -> None:
    """What the #AC does not cover stays for BLD (reference B)."""
    guest = guest_of(intel, LOCK_XADD, 3)
    guest.memory.write_quads(0x3008, 0x200000 | 0x87 | paging.PTE_PCD | paging.PTE_PWT)
    guest.vcpu.regs.rdi = 0x200000
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF07F0


@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_uncached_locks_are_refused_where_the_processor_can(engine: str) -> None:
    """MSR_TEST_CTRL bit 28 by CPUID.(7,2):EDX[6]: #AC with error code 4."""
    kvm = open_kvm(cpu="max", engine=engine)
    guest = guest_of(kvm, LOCK_XADD, 3, msr.TEST_CTRL_UC_LOCK_DISABLE)
    guest.memory.write_quads(0x3008, 0x200000 | 0x87 | paging.PTE_PCD | paging.PTE_PWT)
    guest.vcpu.regs.rdi = 0x200000
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 17
    assert frame(guest, 2) == [4, USER_CODE]


def test_no_bus_lock_exit_for_a_lock_that_was_refused(intel: Kvm) -> None:
    guest = long_mode(intel, LOCK_XADD + HLT)
    guest.vm.enable_cap(abi.Capability.X86_BUS_LOCK_EXIT, abi.BUS_LOCK_DETECTION_EXIT)
    vcpu = guest.vm.create_vcpu(1)
    vcpu.set_cpuid2(intel.get_supported_cpuid())
    vcpu.set_sregs(guest.vcpu.get_sregs())
    vcpu.set_regs(guest.vcpu.get_regs())
    vcpu.set_msrs({msr.TEST_CTRL: SPLIT_LOCK_AC})
    handle(guest, 17, HLT)
    vcpu.regs.rdi = SPLIT
    assert isinstance(vcpu.run(), exits.Hlt)
    assert vcpu.flags == 0
    vcpu.set_msrs({msr.TEST_CTRL: 0})
    vcpu.regs.rip = KERNEL_CODE
    assert isinstance(vcpu.run(), exits.X86BusLock)


@pytest.mark.parametrize("cpu", ["sapphire-rapids", "zen5"])
def test_ordinary_alignment_checks_are_the_guests(cpu: str) -> None:
    """CPL 3 with CR0.AM and RFLAGS.AC: intercepted, and given back with its error code 0."""
    guest = long_mode(open_kvm(cpu=cpu), b"\x8b\x07" + SPIN, cpl=3)
    handle(guest, 17, HLT)
    sregs = guest.vcpu.get_sregs()
    sregs.cr0 |= CR0_AM
    guest.vcpu.set_sregs(sregs)
    guest.vcpu.regs.rdi, guest.vcpu.regs.rflags = DATA + 1, 2 | RFLAGS_AC
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert frame(guest, 2) == [0, USER_CODE]


@pytest.mark.parametrize("cpu", ["zen5", "legacy"])
def test_processors_without_it_have_no_such_register(cpu: str) -> None:
    guest = long_mode(open_kvm(cpu=cpu), b"\x0f\x32" + HLT)  # rdmsr
    handler = handle(guest, 13, HLT)
    guest.vcpu.regs.rcx = msr.TEST_CTRL
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == handler + 1
    assert guest.vcpu.set_msrs({msr.TEST_CTRL: 0}) == 0
