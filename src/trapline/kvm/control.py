"""CR0, CR3, CR4, CR8, EFER, XCR0 and the APIC base: which values the guest may load.

KVM's kvm_set_cr0() and its relatives; True is done, False is #GP(0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch import cpuid, msr, registers
from trapline.arch.registers import (
    CR0_CD,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
)

if TYPE_CHECKING:
    from trapline.kvm.vcpu import SoftwareVcpu

_CR4_ALWAYS = 0x7FF  # VME to OSXMMEXCPT
_CR4_BY_FEATURE = (
    (cpuid.UMIP, registers.CR4_UMIP),
    (cpuid.LA57, registers.CR4_LA57),
    (cpuid.FSGSBASE, registers.CR4_FSGSBASE),
    (cpuid.PCID, registers.CR4_PCIDE),
    (cpuid.XSAVE, registers.CR4_OSXSAVE),
    (cpuid.SMEP, registers.CR4_SMEP),
    (cpuid.SMAP, registers.CR4_SMAP),
    (cpuid.PKU, registers.CR4_PKE),
)
_XCR0_SUPPORTED = registers.XCR0_X87 | registers.XCR0_SSE


class ControlRegisters:
    """One vCPU's."""

    def __init__(self, vcpu: SoftwareVcpu) -> None:
        self._vcpu = vcpu
        self._cr4_allowed = 0

    def follow_cpuid(self) -> None:
        """The guest's CPUID was set: which bits of CR4 it knows."""
        has = self._vcpu.cpuid.has
        bits = (bit for feature, bit in _CR4_BY_FEATURE if has(feature))
        self._cr4_allowed = _CR4_ALWAYS | sum(bits)

    def allows_cr4(self, cr4: int) -> bool:
        return not cr4 & ~self._cr4_allowed

    def write_cr0(self, cr0: int) -> bool:
        vcpu, backend = self._vcpu, self._vcpu.backend
        old, cr4 = backend.get_cr0(), backend.get_cr4()
        cr0 |= registers.CR0_ET
        if cr0 >> 32 or (cr0 & CR0_NW and not cr0 & CR0_CD) or (cr0 & CR0_PG and not cr0 & CR0_PE):
            return False
        cr0 &= registers.CR0_DEFINED
        efer = vcpu.state.efer
        enables = cr0 & ~old & CR0_PG
        if enables and efer & EFER_LME:
            if not cr4 & CR4_PAE or backend.get_segment("cs").l:
                return False
        elif (
            cr0 & CR0_PG
            and not efer & EFER_LME
            and cr4 & CR4_PAE
            and (cr0 ^ old) & (CR0_PG | CR0_CD | CR0_NW)
            and not backend.load_pdptes()
        ):
            return False
        if not cr0 & CR0_PG and (backend.is_64_bit or cr4 & CR4_PCIDE) and old & CR0_PG:
            return False
        if efer & EFER_LME and (cr0 ^ old) & CR0_PG:
            backend.set_efer(efer | EFER_LMA if enables else efer & ~EFER_LMA)
        backend.set_cr0(cr0)
        return True

    def write_cr3(self, cr3: int) -> bool:
        backend, efer = self._vcpu.backend, self._vcpu.state.efer
        if efer & EFER_LMA:
            no_flush = registers.CR3_NOFLUSH if backend.get_cr4() & CR4_PCIDE else 0
            cr3 &= ~no_flush
            if cr3 >> self._vcpu.cpuid.physical_bits:
                return False
        old = self._vcpu.state.cr3
        backend.set_cr3(cr3)
        is_pae = backend.get_cr4() & CR4_PAE and backend.get_cr0() & CR0_PG
        if is_pae and not efer & EFER_LMA and not backend.load_pdptes():
            backend.set_cr3(old)
            return False
        return True

    def write_cr4(self, cr4: int) -> bool:
        vcpu, backend = self._vcpu, self._vcpu.backend
        old = backend.get_cr4()
        if not self.allows_cr4(cr4):
            return False
        is_paging = backend.get_cr0() & CR0_PG
        if vcpu.state.efer & EFER_LMA:
            if not cr4 & CR4_PAE or (cr4 ^ old) & CR4_LA57:
                return False
        elif (
            is_paging and cr4 & CR4_PAE and (cr4 ^ old) & _PDPTE_BITS and not backend.load_pdptes()
        ):
            return False
        if cr4 & ~old & CR4_PCIDE:
            in_long_mode = vcpu.state.efer & EFER_LMA
            if not in_long_mode or vcpu.state.cr3 & registers.CR3_PCID:
                return False
        backend.set_cr4(cr4)
        vcpu.cpuid.follow(cr4, vcpu.state.xcr0)
        return True

    def write_efer(self, efer: int, by_host: bool = False) -> bool:
        vcpu = self._vcpu
        old, has = vcpu.state.efer, vcpu.cpuid.has
        allowed = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE
        if efer & ~allowed:
            return False
        if not by_host:
            if efer & EFER_NXE and not has(cpuid.NX):
                return False
            if efer & (EFER_LME | EFER_LMA) and not has(cpuid.LM):
                return False
            if efer & EFER_SCE and not has(cpuid.SYSCALL):
                return False
            if vcpu.backend.get_cr0() & CR0_PG and (efer ^ old) & EFER_LME:
                return False
        vcpu.backend.set_efer(efer & ~EFER_LMA | old & EFER_LMA)
        return True

    def write_xcr0(self, xcr0: int) -> bool:
        """XSETBV with ECX = 0."""
        vcpu = self._vcpu
        if not xcr0 & registers.XCR0_X87 or xcr0 & ~_XCR0_SUPPORTED:
            return False
        vcpu.state.xcr0 = xcr0
        vcpu.cpuid.follow(vcpu.backend.get_cr4(), xcr0)
        return True

    def write_apic_base(self, word: int, by_host: bool = False) -> bool:
        """kvm_set_apic_base(); without an interrupt controller behind it the value is kept."""
        vcpu, old = self._vcpu, self._vcpu.apic_base
        modes = msr.APIC_BASE_BSP | msr.APIC_BASE_ENABLE
        if vcpu.apic is not None and (by_host or vcpu.cpuid.has(cpuid.X2APIC)):
            modes |= msr.APIC_BASE_X2APIC
        if word & ~((1 << vcpu.cpuid.physical_bits) - 4096 | modes):
            return False
        if not _may_become(old & _APIC_MODES, word & _APIC_MODES, by_host):
            return False
        vcpu.apic_base = word
        if vcpu.apic is not None:
            vcpu.apic.base_changed(old)
            vcpu.cpuid.show_apic(bool(word & msr.APIC_BASE_ENABLE))
        return True


def _may_become(old: int, new: int, by_host: bool) -> bool:
    """SDM 3A, "x2APIC State Transitions": x2APIC is entered from xAPIC and left by switching
    off."""
    if new == msr.APIC_BASE_X2APIC:
        return False
    return by_host or (old, new) not in ((_APIC_MODES, msr.APIC_BASE_ENABLE), (0, _APIC_MODES))


_APIC_MODES = msr.APIC_BASE_ENABLE | msr.APIC_BASE_X2APIC
_PDPTE_BITS = registers.CR4_PSE | registers.CR4_PAE | registers.CR4_PGE | registers.CR4_SMEP
