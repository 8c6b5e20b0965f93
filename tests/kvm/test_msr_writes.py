"""MSRs that only the hypervisor keeps: which there are, and what may be written to them."""

from __future__ import annotations

import pytest

from tests.kvm.guest import KERNEL_CODE, handle, long_mode
from trapline.arch import cpuid, msr
from trapline.kvm import Kvm, exits, pretended

HLT = b"\xf4"


def test_every_listed_msr_can_be_written_back(software: Kvm) -> None:
    """Who moves a guest sets what it has read, on a vCPU that has a CPUID and no more."""
    first, second = long_mode(software, HLT), long_mode(software, HLT)
    words = first.vcpu.get_msrs(software.get_msr_index_list())
    assert second.vcpu.set_msrs(words) == len(words)


def test_what_only_software_knows_of_is_listed(kvm: Kvm) -> None:
    """emulated_msrs_all."""
    listed = kvm.get_msr_index_list()
    wanted = (msr.IA32_TSC_DEADLINE, msr.IA32_MCG_STATUS, msr.IA32_BIOS_SIGN_ID, pretended.HWCR)
    assert [index in listed for index in wanted] == [True] * 4


def writes(kvm: Kvm, index: int, word: int) -> bool:
    """Whether the guest may: the next instruction, or #GP; what is refused changes nothing."""
    guest = long_mode(kvm, b"\x0f\x30" + HLT)
    handle(guest, 13, HLT)
    before = guest.vcpu.get_msrs([index])
    regs = guest.vcpu.regs
    regs.rcx, regs.rax, regs.rdx = index, word & 0xFFFFFFFF, word >> 32
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    is_taken = guest.vcpu.regs.rip == KERNEL_CODE + 3
    assert guest.vcpu.get_msrs([index]) == ({index: word} if is_taken else before)
    guest.close()
    return is_taken


BASE, MASK = msr.IA32_MTRR_PHYSBASE0, msr.IA32_MTRR_PHYSMASK0
FIXED = (msr.IA32_MTRR_FIX64K_00000, msr.IA32_MTRR_FIX4K_C0000 + 7)


@pytest.mark.parametrize(
    ("index", "word", "is_taken"),
    [
        (msr.IA32_MTRR_DEF_TYPE, 0xC06, True),
        (msr.IA32_MTRR_DEF_TYPE, 0xC02, False),
        (msr.IA32_MTRR_DEF_TYPE, 1 << 20 | 6, False),
        (msr.IA32_MTRR_DEF_TYPE, 1 << 8 | 6, False),
        (FIXED[0], 0x0605040100060606, True),
        (FIXED[0], 3, False),
        (FIXED[1], 7 << 56, False),
        (BASE, 0xFE000000 | 5, True),
        (BASE + 14, 0xFE000007, False),
        (BASE, 0xFE000100, False),
        (MASK, 0xFFE000800, True),
        (MASK + 14, 0xFFE000801, False),
        (MASK, 0xFFE000C00, False),
        (MASK, 1 << 60 | 0x800, False),
    ],
)
def test_mtrrs_have_types_and_reserved_bits(
    kvm: Kvm, index: int, word: int, is_taken: bool
) -> None:
    """kvm_mtrr_valid(); SDM 3A, "Memory Type Range Registers (MTRRs)"."""
    assert writes(kvm, index, word) == is_taken


@pytest.mark.parametrize("index", [BASE, MASK])
def test_variable_mtrrs_are_as_wide_as_physical_addresses(software: Kvm, index: int) -> None:
    """CPUID 80000008H; KVM_SET_MSRS is told like the guest, and without the leaf it is 36."""
    sizes = cpuid.find(software.get_supported_cpuid(), 0x80000008)
    assert sizes is not None
    bits = sizes.eax & 0xFF
    assert writes(software, index, 1 << bits - 1)
    assert not writes(software, index, 1 << bits)
    vcpu = long_mode(software, HLT, cpuid=False).vcpu
    assert vcpu.set_msrs({index: 1 << 35}) == 1
    assert vcpu.set_msrs({index: 1 << 36}) == 0


def test_the_microcodes_revision_is_the_vmms(kvm: Kvm) -> None:
    """MSR_IA32_UCODE_REV: Linux writes 0 before it reads it, as the SDM has it."""
    # xor eax, eax; xor edx, edx; mov ecx, 8bh; wrmsr; rdmsr
    code = bytes.fromhex("31c0 31d2 b98b000000 0f30 0f32")
    guest = long_mode(kvm, code + HLT)
    revision = 0x2B000603 << 32
    assert guest.vcpu.set_msrs({msr.IA32_BIOS_SIGN_ID: revision}) == 1
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rdx == revision >> 32
    assert guest.vcpu.get_msrs([msr.IA32_BIOS_SIGN_ID])[msr.IA32_BIOS_SIGN_ID] == revision
    guest.close()
