"""Hypercalls, and instructions that a guest's CPUID does not show, on both vendors' processors."""

from __future__ import annotations

import errno

import pytest

from tests.kvm.guest import (
    DATA,
    KERNEL_CODE,
    PAGE_DIRECTORY,
    Guest,
    Memory,
    handle,
    long_mode,
    real_mode,
)
from trapline.arch import cpuid
from trapline.kvm import Kvm, abi, exits, open_kvm

INTEL, AMD = "sapphire-rapids", "zen5"
VMCALL, VMMCALL = b"\x0f\x01\xc1", b"\x0f\x01\xd9"
OWN = {INTEL: VMCALL, AMD: VMMCALL}
OTHER = {INTEL: VMMCALL, AMD: VMCALL}
HLT = b"\xf4"
NO_SUCH_CALL, NOT_PERMITTED = -1000 & (1 << 64) - 1, (1 << 64) - 1
DISABLE_QUIRKS, DISABLE_QUIRKS2 = 116, 213
FIX_HYPERCALL, MWAIT_IS_NOP = 1 << 5, 1 << 6


@pytest.fixture(params=[INTEL, AMD])
def cpu(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["interp", "jit"])
def kvm(request: pytest.FixtureRequest, cpu: str) -> Kvm:
    return open_kvm(cpu=cpu, engine=request.param)


def run(guest: Guest) -> exits.Exit:
    try:
        return guest.vcpu.run()
    finally:
        guest.close()


def undefined(kvm: Kvm, code: bytes, cpl: int = 0) -> bool:
    """Whether the guest's own handler of #UD is where it ends."""
    guest = long_mode(kvm, code + HLT, cpl)
    at = handle(guest, 6, HLT)
    handle(guest, 13, HLT)
    guest.vcpu.regs.rcx = 0
    assert guest.vcpu.run() == exits.Hlt()
    rip = guest.vcpu.regs.rip
    guest.close()
    return rip == at + 1


@pytest.mark.parametrize(("number", "result"), [(0, NO_SUCH_CALL), (1, 0), (99, NO_SUCH_CALL)])
def test_a_hypercall_answers_in_rax(kvm: Kvm, cpu: str, number: int, result: int) -> None:
    """kvm_emulate_hypercall(): -KVM_ENOSYS, and the one call that asks for nothing."""
    guest = long_mode(kvm, OWN[cpu] + HLT)
    guest.vcpu.regs.rax = number
    assert guest.vcpu.run() == exits.Hlt()
    assert guest.vcpu.regs.rax == result
    assert guest.vcpu.regs.rip == KERNEL_CODE + 4
    guest.close()


def test_outside_of_64_bit_mode_only_eax_is_written(kvm: Kvm, cpu: str) -> None:
    guest = real_mode(kvm, OWN[cpu] + HLT)
    guest.vcpu.regs.rax = 0xABCD00000001 << 16
    assert guest.vcpu.run() == exits.Hlt()
    assert guest.vcpu.regs.rax == NO_SUCH_CALL & 0xFFFFFFFF
    guest.close()


def test_a_program_may_not_call(kvm: Kvm, cpu: str) -> None:
    guest = long_mode(kvm, OWN[cpu] + b"\x0f\x0b", 3)
    handle(guest, 6, HLT)
    assert guest.vcpu.run() == exits.Hlt()
    assert guest.vcpu.regs.rax == NOT_PERMITTED
    guest.close()


def test_the_other_vendors_call_is_replaced_and_done(kvm: Kvm, cpu: str) -> None:
    """emulator_fix_hypercall(): for guests that came from the other vendor's machine."""
    guest = long_mode(kvm, b"\x90" + OTHER[cpu] + HLT)
    for _ in range(2):  # the second time without a #UD
        guest.vcpu.regs.rip, guest.vcpu.regs.rax = KERNEL_CODE, 7
        assert guest.vcpu.run() == exits.Hlt()
        assert guest.vcpu.regs.rax == NO_SUCH_CALL
    assert guest.memory.read(KERNEL_CODE + 1, 3) == OWN[cpu]
    guest.close()


def test_what_the_guest_may_not_write_is_not_replaced(kvm: Kvm, cpu: str) -> None:
    """The write is the guest's own: a page fault of its."""
    guest = long_mode(kvm, OTHER[cpu] + HLT)
    at = handle(guest, 14, HLT)
    guest.memory.write_quads(PAGE_DIRECTORY, guest.memory.quad(PAGE_DIRECTORY) & ~2)
    guest.vcpu.regs.rsp = 0x238000
    assert guest.vcpu.run() == exits.Hlt()
    assert guest.vcpu.regs.rip == at + 1
    assert guest.vcpu.get_sregs().cr2 == KERNEL_CODE
    assert guest.memory.quad(0x238000 - 48) == 3  # present, write
    assert guest.memory.read(KERNEL_CODE, 3) == OTHER[cpu]
    guest.close()


def test_in_a_read_only_slot_the_vmm_is_told_of_the_replacement(kvm: Kvm, cpu: str) -> None:
    """A write exit, each time the guest comes to it."""
    rom = Memory(0x1000)
    rom.write(0, OTHER[cpu])
    guest = long_mode(kvm, b"")
    guest.memory.write_quads(PAGE_DIRECTORY + 8, 0x800000 | 0x87)
    guest.vm.set_user_memory_region(1, abi.MEM_READONLY, 0x800000, 0x1000, rom.address)
    guest.vcpu.regs.rip = 0x200000
    for _ in range(2):
        assert guest.vcpu.run() == exits.Mmio(0x800000, 3, True, bytearray(OWN[cpu]))
    assert rom.read(0, 3) == OTHER[cpu]
    guest.close()


def test_without_the_quirk_the_other_vendors_call_is_undefined(kvm: Kvm, cpu: str) -> None:
    for number, quirk, replaced in (
        (DISABLE_QUIRKS2, FIX_HYPERCALL, False),
        (DISABLE_QUIRKS, FIX_HYPERCALL, False),
        (DISABLE_QUIRKS2, MWAIT_IS_NOP, True),
    ):
        guest = long_mode(kvm, OTHER[cpu] + HLT)
        at = handle(guest, 6, HLT)
        guest.vm.enable_cap(number, quirk)
        assert guest.vcpu.run() == exits.Hlt()
        assert (guest.vcpu.regs.rip == at + 1) is not replaced
        assert (guest.memory.read(KERNEL_CODE, 3) == OWN[cpu]) is replaced
        guest.close()


def test_quirks_that_nobody_knows_are_refused_by_the_second_capability_only(kvm: Kvm) -> None:
    guest = long_mode(kvm, HLT)
    assert guest.vm.check_extension(DISABLE_QUIRKS2) == FIX_HYPERCALL | MWAIT_IS_NOP
    with pytest.raises(OSError) as refused:
        guest.vm.enable_cap(DISABLE_QUIRKS2, 1 << 30)
    assert refused.value.errno == errno.EINVAL
    guest.vm.enable_cap(DISABLE_QUIRKS, 1 << 30)
    guest.close()


VMX = ("0f01c2", "0f01c3", "0f01c4", "0fc737", "660fc737", "f30fc737", "0fc73f", "0f7807",
       "0f7907", "660f388007", "660f388107", "0f37", "0f01d4")  # fmt: skip
SVM = ("0f01d8", "0f01da", "0f01db", "0f01dc", "0f01dd", "0f01de", "0f01df")


@pytest.mark.parametrize("code", [*VMX, *SVM])
def test_without_nesting_a_guest_has_no_guests(kvm: Kvm, code: str) -> None:
    assert undefined(kvm, bytes.fromhex(code))


@pytest.mark.parametrize("code", ["0f01c8", "0f01c9"])
def test_monitor_and_mwait_do_nothing_unless_the_quirk_is_off(kvm: Kvm, code: str) -> None:
    """kvm_emulate_monitor_mwait(): no CPUID of a guest shows them."""
    assert not undefined(kvm, bytes.fromhex(code))
    assert undefined(kvm, bytes.fromhex(code), cpl=3)
    guest = long_mode(kvm, bytes.fromhex(code) + HLT)
    at = handle(guest, 6, HLT)
    guest.vm.enable_cap(DISABLE_QUIRKS2, MWAIT_IS_NOP)
    guest.vcpu.regs.rcx, guest.vcpu.regs.rax = 0, DATA
    assert guest.vcpu.run() == exits.Hlt()
    assert guest.vcpu.regs.rip == at + 1
    guest.close()


@pytest.mark.parametrize(
    ("model", "code", "feature"),
    [
        (INTEL, "0f01f9", cpuid.RDTSCP),
        (AMD, "0f01f9", cpuid.RDTSCP),
        ("max", "660f388207", cpuid.INVPCID),
    ],
)
def test_what_the_guests_cpuid_hides_is_undefined(
    model: str, code: str, feature: cpuid.Feature
) -> None:
    """vmx_secondary_exec_control() and svm_recalc_instruction_intercepts()."""
    kvm = open_kvm(cpu=model)
    for is_shown in (True, False):
        guest = long_mode(kvm, bytes.fromhex(code) + HLT)
        at = handle(guest, 6, HLT)
        leaves = [
            one.with_feature(feature, is_shown)
            if (one.function, one.index) == (feature.function, feature.index)
            else one
            for one in kvm.get_supported_cpuid()
        ]
        guest.vcpu.set_cpuid2(leaves)
        guest.vcpu.regs.rax, guest.vcpu.regs.rdi = 2, DATA
        assert guest.vcpu.run() == exits.Hlt()
        assert (guest.vcpu.regs.rip == at + 1) is not is_shown
        guest.close()


def test_rdpmc_finds_no_counters(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x0f\x33" + HLT)
    at = handle(guest, 13, HLT)
    assert run(guest) == exits.Hlt()
    assert guest.vcpu.regs.rip == at + 1


@pytest.mark.parametrize("code", ["0f08", "0f09", "f390"])
def test_caches_and_pauses_pass(kvm: Kvm, code: str) -> None:
    guest = long_mode(kvm, bytes.fromhex(code) + HLT)
    assert run(guest) == exits.Hlt()
    assert guest.vcpu.regs.rip == KERNEL_CODE + 3


def test_addresses_of_57_bits_are_fit_for_the_next_entry() -> None:
    """On a processor with 5-level paging WRMSR takes them, whatever the paging mode."""
    kvm = open_kvm(cpu="max")
    wrmsr = b"\xb9\x00\x01\x00\xc0\x31\xc0\xba\x00\x00\x10\x00\x0f\x30"  # FS_BASE := 1 << 52
    guest = long_mode(kvm, wrmsr + HLT + HLT)
    assert guest.vcpu.run() == exits.Hlt()
    assert guest.vcpu.fs_base == 1 << 52
    guest.vcpu.set_sregs(guest.vcpu.get_sregs())
    assert guest.vcpu.run() == exits.Hlt()
    guest.close()
