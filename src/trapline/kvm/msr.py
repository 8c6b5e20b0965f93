"""RDMSR and WRMSR of the guest, and KVM_GET_MSRS and KVM_SET_MSRS.

Registers that are in the processor are read and written there; those that KVM only pretends are
words here.  DEBUGCTL's filter is the heart of bus-lock detection for guests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch import cpuid, msr
from trapline.arch.paging import is_valid_pat

if TYPE_CHECKING:
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
_READ_ONLY = {msr.IA32_MTRRCAP: 8 | msr.MTRRCAP_FIXED | msr.MTRRCAP_WC}
_BTF_AND_LBR = msr.DEBUGCTL_BTF | msr.DEBUGCTL_LBR


class Msrs:
    """One vCPU's MSRs.  `None` and `False` are #GP for the guest, the end of the list for
    userspace; `by_host` says who asks."""

    def __init__(self, vcpu: SoftwareVcpu) -> None:
        self._vcpu = vcpu
        self._words = dict.fromkeys(_MTRRS, 0)
        self._words |= {msr.IA32_BIOS_SIGN_ID: 0, msr.IA32_MISC_ENABLE: 1, msr.IA32_MCG_STATUS: 0}

    @staticmethod
    def indices() -> list[int]:
        """KVM_GET_MSR_INDEX_LIST."""
        rest = (msr.IA32_TSC, msr.IA32_PAT, msr.IA32_EFER, msr.IA32_APIC_BASE)
        return sorted({*_IN_PROCESSOR, *rest, *_MTRRS, msr.IA32_MTRRCAP, msr.IA32_MISC_ENABLE})

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
        if index in _IN_PROCESSOR:
            return vcpu.backend.read_msr(index) if self._may_touch(index, by_host) else None
        if index in _READ_ONLY:
            return _READ_ONLY[index]
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
        if index in _IN_PROCESSOR:
            return self._may_touch(index, by_host) and vcpu.backend.write_msr(index, word)
        if index not in self._words:
            return False
        self._words[index] = word
        return True

    def _may_touch(self, index: int, by_host: bool) -> bool:
        return by_host or index != msr.IA32_TSC_AUX or self._vcpu.cpuid.has(cpuid.RDTSCP)

    def _set_debugctl(self, word: int, by_host: bool) -> bool:
        """vmx_set_msr() and svm_set_msr() of 0x1D9: what the guest's CPUID shows may be set; LBR
        and BTF, which Linux writes without asking, are dropped; anything else is #GP."""
        vcpu = self._vcpu
        supported = vcpu.backend.supported_debugctl(
            by_host or vcpu.cpuid.has(cpuid.BUS_LOCK_DETECT), by_host or vcpu.cpuid.has(cpuid.RTM)
        )
        word &= ~(_BTF_AND_LBR & ~supported)
        if word & ~supported:
            return False
        vcpu.backend.set_debugctl(word)
        return True
