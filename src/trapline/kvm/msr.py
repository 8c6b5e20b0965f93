"""RDMSR and WRMSR of the guest, and KVM_GET_MSRS and KVM_SET_MSRS.

Registers that are in the processor are read and written there; those that KVM only pretends are
words here.  DEBUGCTL's filter is the heart of bus-lock detection for guests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from trapline.arch import cpuid, msr
from trapline.arch.cpuid import CpuidEntry
from trapline.arch.paging import is_valid_mtrr_type, is_valid_pat
from trapline.kvm import pretended, quirks
from trapline.kvm.irqchip import register_file
from trapline.kvm.quirks import Quirk

if TYPE_CHECKING:
    from trapline.kvm.irqchip import LocalApic
    from trapline.kvm.vcpu import SoftwareVcpu

# In the processor's own MSR file, or in the VMCS or VMCB (the backend knows which).
_IN_PROCESSOR = (
    *(msr.IA32_SYSENTER_CS, msr.IA32_SYSENTER_ESP, msr.IA32_SYSENTER_EIP),
    *(msr.IA32_STAR, msr.IA32_LSTAR, msr.IA32_CSTAR, msr.IA32_FMASK),
    *(msr.IA32_FS_BASE, msr.IA32_GS_BASE, msr.IA32_KERNEL_GS_BASE, msr.IA32_TSC_AUX),
)
_MTRRS = (
    *range(msr.IA32_MTRR_PHYSBASE0, msr.mtrr_physbase(8)),
    msr.IA32_MTRR_FIX64K_00000,
    msr.IA32_MTRR_FIX16K_80000,
    msr.IA32_MTRR_FIX16K_A0000,
    *range(msr.IA32_MTRR_FIX4K_C0000, msr.IA32_MTRR_FIX4K_C0000 + 8),
    msr.IA32_MTRR_DEF_TYPE,
)
_MTRR_DEF_TYPE = msr.MTRR_DEF_TYPE_TYPE | msr.MTRR_DEF_TYPE_FIXED_ENABLE | msr.MTRR_DEF_TYPE_ENABLE
_PAGE_SIZE = 4096
_SPLIT_LOCK = (msr.TEST_CTRL, msr.IA32_CORE_CAPABILITIES)
# Linux's split_lock_cpu_ids: Ice Lake X, D and L have TEST_CTRL and do not enumerate it.
_FAMILY_AND_MODEL = 0x0FFF0FF0
_TEST_CTRL_UNENUMERATED = (0x606A0, 0x606C0, 0x706D0)
_READ_ONLY = {msr.IA32_MTRRCAP: 8 | msr.MTRRCAP_FIXED | msr.MTRRCAP_WC}
# Last branches, and those before the last exception: none is recorded (kvm_get_msr_common).
_READ_ONLY |= dict.fromkeys(range(msr.LAST_BRANCH_FROM_IP, msr.LAST_BRANCH_FROM_IP + 4), 0)
_READ_ONLY |= pretended.CONSTANT
_APIC = range(msr.X2APIC_FIRST, msr.X2APIC_LAST + 1)
_BTF_AND_LBR = msr.DEBUGCTL_BTF | msr.DEBUGCTL_LBR


def knows_test_ctrl(entries: Iterable[CpuidEntry]) -> bool:
    """Whether a processor with these leaves has MSR_TEST_CTRL's split-lock bit."""
    leaves = list(entries)
    signature = cpuid.find(leaves, 1)
    if signature is not None and signature.eax & _FAMILY_AND_MODEL in _TEST_CTRL_UNENUMERATED:
        return True
    return cpuid.has(leaves, cpuid.CORE_CAPABILITIES)


def _is_valid_mtrr(index: int, word: int, physical_bits: int) -> bool:
    """kvm_mtrr_valid(): types that there are, and no reserved bit (SDM 3A, "Memory Type Range
    Registers (MTRRs)")."""
    if index == msr.IA32_MTRR_DEF_TYPE:
        return not word & ~_MTRR_DEF_TYPE and is_valid_mtrr_type(word & msr.MTRR_DEF_TYPE_TYPE)
    if index >= msr.IA32_MTRR_FIX64K_00000:
        return all(is_valid_mtrr_type(number) for number in word.to_bytes(8, "little"))
    addresses = (1 << physical_bits) - _PAGE_SIZE
    if index & 1:
        return not word & ~(addresses | msr.MTRR_PHYSMASK_VALID)
    number = word & msr.MTRR_PHYSBASE_TYPE
    return not word & ~(addresses | msr.MTRR_PHYSBASE_TYPE) and is_valid_mtrr_type(number)


def indices(model: Iterable[CpuidEntry], quirks: Quirk = quirks.NONE) -> list[int]:
    """KVM_GET_MSR_INDEX_LIST."""
    listed = {*_IN_PROCESSOR, *_MTRRS, msr.IA32_MISC_ENABLE}
    listed |= {msr.IA32_TSC, msr.IA32_PAT, msr.IA32_EFER, msr.IA32_APIC_BASE}
    listed |= {msr.IA32_TSC_DEADLINE, msr.IA32_MCG_STATUS, msr.IA32_BIOS_SIGN_ID, pretended.HWCR}
    if Quirk.DEBUGCTL_NOT_LISTED not in quirks:
        listed.add(msr.IA32_DEBUGCTL)
    if Quirk.NO_SPLIT_LOCK_AC not in quirks and knows_test_ctrl(model):
        listed.add(msr.TEST_CTRL)
    return sorted(listed)


def features(model: Iterable[CpuidEntry], quirks: Quirk = quirks.NONE) -> dict[int, int]:
    """KVM_GET_MSR_FEATURE_INDEX_LIST, with what KVM_GET_MSRS on /dev/kvm answers."""
    found = {msr.IA32_BIOS_SIGN_ID: 0}
    if Quirk.NO_SPLIT_LOCK_AC not in quirks and cpuid.has(model, cpuid.CORE_CAPABILITIES):
        found[msr.IA32_CORE_CAPABILITIES] = msr.CORE_CAPABILITIES_SPLIT_LOCK_AC
    return found


class Msrs:
    """One vCPU's MSRs.  `None` and `False` are #GP for the guest, the end of the list for
    userspace; `by_host` says who asks."""

    def __init__(self, vcpu: SoftwareVcpu) -> None:
        self._vcpu = vcpu
        self._words = dict.fromkeys(_MTRRS, 0)
        self._words |= {msr.IA32_BIOS_SIGN_ID: 0, msr.IA32_MISC_ENABLE: 1, msr.IA32_MCG_STATUS: 0}
        self._words[pretended.HWCR] = 0

    def get(self, index: int, by_host: bool = False) -> int | None:
        vcpu = self._vcpu
        match index:
            case msr.IA32_EFER:
                return int(vcpu.state.efer)
            case msr.IA32_PAT:
                return int(vcpu.state.pat)
            case msr.IA32_DEBUGCTL:
                return vcpu.backend.get_debugctl()
            case msr.IA32_TSC:
                return vcpu.backend.get_tsc()
            case msr.IA32_APIC_BASE:
                return vcpu.apic_base
            case msr.IA32_TSC_DEADLINE:
                return _get_deadline(vcpu.apic, by_host)
        if index in _SPLIT_LOCK:
            return self._get_split_lock(index, by_host)
        if index in _IN_PROCESSOR:
            return vcpu.backend.read_msr(index) if self._may_touch(index, by_host) else None
        if index in _READ_ONLY:
            return _READ_ONLY[index]
        if index in _APIC and vcpu.apic is not None:
            return register_file.read_msr(vcpu.apic, index)
        return self._words.get(index)

    def set(self, index: int, word: int, by_host: bool = False) -> bool:
        vcpu = self._vcpu
        match index:
            case msr.IA32_EFER:
                return vcpu.control.write_efer(word, by_host)
            case msr.IA32_PAT:
                if not is_valid_pat(word):
                    return False
                vcpu.backend.set_pat(word)
                return True
            case msr.IA32_DEBUGCTL:
                return self._set_debugctl(word, by_host)
            case msr.IA32_TSC:
                vcpu.backend.set_tsc(word)
                return True
            case msr.IA32_APIC_BASE:
                return vcpu.control.write_apic_base(word, by_host)
            case msr.IA32_TSC_DEADLINE:
                return _set_deadline(vcpu.apic, word)
        if index == msr.TEST_CTRL:
            return self._set_test_ctrl(word, by_host)
        if index in _IN_PROCESSOR:
            return self._may_touch(index, by_host) and vcpu.backend.write_msr(index, word)
        if index in _APIC and vcpu.apic is not None:
            return register_file.write_msr(vcpu.apic, index, word)
        if index in pretended.IGNORED or (index == msr.IA32_BIOS_SIGN_ID and not by_host):
            return True  # systems write the microcode's revision before they read it
        if index not in self._words:
            return False
        if index in _MTRRS and not _is_valid_mtrr(index, word, vcpu.cpuid.physical_bits):
            return False
        kept = pretended.hwcr(word) if index == pretended.HWCR else word
        if kept is None:
            return False
        self._words[index] = kept
        return True

    def _may_touch(self, index: int, by_host: bool) -> bool:
        return by_host or index != msr.IA32_TSC_AUX or self._vcpu.cpuid.has(cpuid.RDTSCP)

    def _set_debugctl(self, word: int, by_host: bool) -> bool:
        """vmx_set_msr() and svm_set_msr() of 0x1D9: what the guest's CPUID shows may be set; LBR
        and BTF, which Linux writes without asking, are dropped; anything else is #GP."""
        vcpu = self._vcpu
        is_shown = by_host or vcpu.cpuid.has(cpuid.BUS_LOCK_DETECT)
        has_bus_lock_detect = is_shown and Quirk.SVM_NO_BUS_LOCK_DETECT not in vcpu.quirks
        has_rtm = by_host or vcpu.cpuid.has(cpuid.RTM)
        supported = vcpu.backend.supported_debugctl(has_bus_lock_detect, has_rtm)
        word &= ~(_BTF_AND_LBR & ~supported)
        if word & ~supported:
            return False
        vcpu.backend.set_debugctl(word)
        return True

    # -- split-lock #AC -------------------------------------------------------------------------

    def _get_split_lock(self, index: int, by_host: bool) -> int | None:
        return self._vcpu.backend.read_msr(index) if self._has(index, by_host) else None

    def _set_test_ctrl(self, word: int, by_host: bool) -> bool:
        """MSR_TEST_CTRL is the guest's own: each vCPU has a processor to itself."""
        vcpu = self._vcpu
        may_refuse_uncached = by_host or vcpu.cpuid.has(cpuid.UC_LOCK_DISABLE)
        if word & msr.TEST_CTRL_UC_LOCK_DISABLE and not may_refuse_uncached:
            return False
        return self._has(msr.TEST_CTRL, by_host) and vcpu.backend.write_msr(msr.TEST_CTRL, word)

    def _has(self, index: int, by_host: bool) -> bool:
        """Whether the guest is shown this one of the two, as far as the processor has it."""
        if Quirk.NO_SPLIT_LOCK_AC in self._vcpu.quirks:
            return False
        entries = self._vcpu.cpuid.entries
        if index == msr.TEST_CTRL:
            return by_host or knows_test_ctrl(entries)
        return by_host or cpuid.has(entries, cpuid.CORE_CAPABILITIES)


def _get_deadline(apic: LocalApic | None, by_host: bool) -> int:
    """Zero without a timer to set (kvm_get_lapic_tscdeadline_msr); nor does the guest see a
    deadline that has passed."""
    if apic is None or not (by_host or apic.timer.is_running):
        return 0
    return apic.timer.tsc_deadline


def _set_deadline(apic: LocalApic | None, word: int) -> bool:
    if apic is not None:
        with apic.lock:
            apic.timer.set_deadline(word)
    return True
