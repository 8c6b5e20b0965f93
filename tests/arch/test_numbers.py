"""Registers, MSRs, CPUID and the APIC: numbers against the manuals, and lookups."""

from __future__ import annotations

from trapline.arch import apic, cpuid, msr, registers
from trapline.arch.cpuid import CpuidEntry, Feature


def test_the_bus_lock_feature_s_numbers():
    assert Feature(7, 0, "ecx", 24) == cpuid.BUS_LOCK_DETECT
    assert Feature(0x8000000A, 0, "edx", 29) == cpuid.BUS_LOCK_THRESHOLD
    assert (msr.IA32_DEBUGCTL, msr.DEBUGCTL_BLD) == (0x1D9, 4)
    assert (msr.TEST_CTRL, msr.TEST_CTRL_SPLIT_LOCK_AC) == (0x33, 0x20000000)
    assert (msr.IA32_CORE_CAPABILITIES, msr.CORE_CAPABILITIES_SPLIT_LOCK_AC) == (0xCF, 0x20)


def test_msr_numbers_have_one_name_each():
    assert msr.name_of(0x1D9) == "IA32_DEBUGCTL"
    assert msr.name_of(0xC0000102) == "IA32_KERNEL_GS_BASE"
    assert msr.name_of(0x12345) == "0x12345"
    numbers = [number for name, number in vars(msr).items() if name in msr.NAMES.values()]
    assert len(numbers) == len(set(numbers)) == len(msr.NAMES)


def test_bit_names_are_not_taken_for_msrs():
    assert all(not name.startswith("TEST_CTRL_") for name in msr.NAMES.values())
    assert msr.mtrr_physbase(3) == 0x206


def test_no_two_features_share_a_place():
    features = [value for value in vars(cpuid).values() if isinstance(value, Feature)]
    assert len(set(features)) == len(features) > 100


def test_a_feature_is_read_from_its_own_entry():
    entry = CpuidEntry(7, 0).with_feature(cpuid.BUS_LOCK_DETECT)
    assert entry.ecx == 1 << 24
    assert entry.has(cpuid.BUS_LOCK_DETECT)
    assert not CpuidEntry(1, 0, ecx=1 << 24).has(cpuid.BUS_LOCK_DETECT)
    assert not entry.with_feature(cpuid.BUS_LOCK_DETECT, False).has(cpuid.BUS_LOCK_DETECT)


def test_entries_with_a_significant_index_answer_only_for_it():
    sub = CpuidEntry(7, 1, flags=cpuid.SIGNIFICANT_INDEX, eax=1 << 7)
    plain = CpuidEntry(1, 0, edx=1)
    assert cpuid.find([plain, sub], 7, 0) is None
    assert cpuid.find([plain, sub], 7, 1) is sub
    assert cpuid.find([plain, sub], 1, 9) is plain
    assert cpuid.has([plain, sub], cpuid.CMPCCXADD)
    assert not cpuid.has([plain, sub], cpuid.BUS_LOCK_DETECT)
    assert cpuid.has([plain, sub], cpuid.FPU)


def test_rflags_are_partitioned():
    assert registers.RFLAGS_DEFINED & registers.RFLAGS_RESERVED == 0
    assert registers.RFLAGS_STATUS == 0x8D5
    single = [
        registers.RFLAGS_CF | registers.RFLAGS_PF | registers.RFLAGS_AF | registers.RFLAGS_ZF,
        registers.RFLAGS_SF | registers.RFLAGS_TF | registers.RFLAGS_IF | registers.RFLAGS_DF,
        registers.RFLAGS_OF | registers.RFLAGS_IOPL | registers.RFLAGS_NT | registers.RFLAGS_RF,
        registers.RFLAGS_VM | registers.RFLAGS_AC | registers.RFLAGS_VIF | registers.RFLAGS_VIP,
        registers.RFLAGS_ID,
    ]
    assert sum(single) == registers.RFLAGS_DEFINED


def test_cr0_names_every_defined_bit():
    named = [n for k, n in vars(registers).items() if k.startswith("CR0_") and n.bit_count() == 1]
    assert sum(named) == registers.CR0_DEFINED
    assert registers.CR0_RESET == 0x60000010


def test_x2apic_numbers():
    assert msr.X2APIC_FIRST + apic.TPR // 16 == 0x808
    assert msr.X2APIC_FIRST + apic.SELF_IPI // 16 == 0x83F
