"""CPUID: what the hypervisor can show (supported leaves), and what one guest is shown.

Which features a processor has is the processor's; here is only what virtualization takes away or
adds, and KVM's way of looking a leaf up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from trapline.arch import cpuid
from trapline.arch.cpuid import SIGNIFICANT_INDEX, CpuidEntry, Feature
from trapline.arch.registers import CR4_OSXSAVE, CR4_PKE
from trapline.kvm import quirks
from trapline.kvm.quirks import Quirk

# What a guest gets no virtual form of: nested VMX and SVM, MONITOR, an interrupt controller.
_HIDDEN = (
    cpuid.VMX,
    cpuid.SVM,
    cpuid.MONITOR,
    cpuid.TSC_DEADLINE,
    cpuid.TSC_ADJUST,
    cpuid.MCE,
    cpuid.MCA,
    cpuid.SPEC_CTRL,
    cpuid.ARCH_CAPABILITIES,
)
# KVM emulates the x2APIC wherever it runs; the TSC deadline is told by KVM_CHECK_EXTENSION.
_SHOWN = (cpuid.HYPERVISOR, cpuid.X2APIC)
_HIDDEN_BY_QUIRK = {
    Quirk.SVM_NO_BUS_LOCK_DETECT: (cpuid.BUS_LOCK_DETECT,),
    Quirk.NO_SPLIT_LOCK_AC: (cpuid.CORE_CAPABILITIES, cpuid.UC_LOCK_DISABLE),
}
_BASIC, _EXTENDED = 0, 0x80000000
_ADDRESS_SIZES = 0x80000008
_PHYSICAL_BITS_WITHOUT_LEAF = 36
# AMD's Fn8000_0001_EDX says these again (APM 3).
_REPEATED = [replace(one, function=_EXTENDED + 1) for one in (cpuid.MCE, cpuid.MCA)]


def supported(model: Iterable[CpuidEntry], quirks: Quirk = quirks.NONE) -> list[CpuidEntry]:
    """KVM_GET_SUPPORTED_CPUID from the leaves of the processor's model."""
    leaves, entries = list(model), []
    quirks = applicable(quirks, leaves)
    hidden = [one for quirk, some in _HIDDEN_BY_QUIRK.items() if quirk in quirks for one in some]
    if is_amd(leaves):
        hidden += _REPEATED
        if not cpuid.has(leaves, cpuid.LBRV):
            hidden.append(cpuid.BUS_LOCK_DETECT)  # a guest has no DEBUGCTL of its own then
    for entry in leaves:
        if entry.function == cpuid.NPT.function:
            entry = CpuidEntry(entry.function)  # without SVM there is nothing to say of it
        for feature in (*_HIDDEN, *hidden):
            entry = _with(entry, feature, False)
        for feature in _SHOWN:
            entry = _with(entry, feature, True)
        entries.append(entry)
    return entries


def applicable(quirks: Quirk, model: Iterable[CpuidEntry]) -> Quirk:
    """Those that say something of this processor."""
    return quirks if is_amd(model) else quirks & ~Quirk.SVM_NO_BUS_LOCK_DETECT


def is_amd(entries: Iterable[CpuidEntry]) -> bool:
    """Whether these are the leaves of an AMD processor."""
    basic = cpuid.find(entries, _BASIC)
    return basic is not None and basic.ebx == _AMD_EBX


def _with(entry: CpuidEntry, feature: Feature, present: bool) -> CpuidEntry:
    is_there = (entry.function, entry.index) == (feature.function, feature.index)
    return entry.with_feature(feature, present) if is_there else entry


class GuestCpuid:
    """KVM_SET_CPUID2 of one vCPU, with the bits that follow its registers."""

    def __init__(self) -> None:
        self.entries: list[CpuidEntry] = []
        self._answers: dict[tuple[int, int], tuple[int, int, int, int]] = {}
        self._cr4 = 0
        self._xcr0 = 1
        self._shows_apic: bool | None = None

    def set(self, entries: Iterable[CpuidEntry]) -> None:
        self.entries = list(entries)
        self._answers.clear()

    def has(self, feature: Feature) -> bool:
        return cpuid.has(self.entries, feature)

    @property
    def physical_bits(self) -> int:
        """How wide the guest's physical addresses are (cpuid_query_maxphyaddr)."""
        limits = cpuid.find(self.entries, _EXTENDED)
        sizes = cpuid.find(self.entries, _ADDRESS_SIZES)
        if limits is None or limits.eax < _ADDRESS_SIZES or sizes is None:
            return _PHYSICAL_BITS_WITHOUT_LEAF
        return sizes.eax & 0xFF

    def follow(self, cr4: int, xcr0: int) -> None:
        """CR4 or XCR0 was written (kvm_update_cpuid_runtime)."""
        if (cr4 ^ self._cr4) & (CR4_OSXSAVE | CR4_PKE) or xcr0 != self._xcr0:
            self._answers.clear()
        self._cr4, self._xcr0 = cr4, xcr0

    def show_apic(self, is_enabled: bool) -> None:
        """IA32_APIC_BASE was written, and there is a local APIC."""
        if is_enabled != self._shows_apic:
            self._answers.clear()
        self._shows_apic = is_enabled

    def answer(self, function: int, index: int) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX of CPUID."""
        known = self._answers.get((function, index))
        if known is None:
            if len(self._answers) > 4096:
                self._answers.clear()
            known = self._answers[function, index] = self._look_up(function, index)
        return known

    def _look_up(self, function: int, index: int) -> tuple[int, int, int, int]:
        entry = cpuid.find(self.entries, function, index) or self._out_of_range(function, index)
        if entry is not None:
            entry = self._at_run_time(entry)
            return entry.eax, entry.ebx, entry.ecx, entry.edx
        if function in (0xB, 0x1F):
            # SDM 2A, CPUID: an invalid level repeats the index and the x2APIC ID.
            first = cpuid.find(self.entries, function, 1)
            if first is not None:
                return 0, 0, index & 0xFF, first.edx
        return 0, 0, 0, 0

    def _out_of_range(self, function: int, index: int) -> CpuidEntry | None:
        """Intel answers with the highest basic leaf (get_out_of_range_cpuid_entry)."""
        basic = cpuid.find(self.entries, _BASIC)
        if basic is None or basic.ebx == _AMD_EBX:
            return None
        limits = cpuid.find(self.entries, function & _EXTENDED)
        if limits is not None and function <= limits.eax:
            return None
        return cpuid.find(self.entries, basic.eax, index)

    def _at_run_time(self, entry: CpuidEntry) -> CpuidEntry:
        if entry.function == 1:
            if self._shows_apic is False:
                entry = _with(entry, cpuid.APIC, False)
            return _with(entry, cpuid.OSXSAVE, bool(self._cr4 & CR4_OSXSAVE))
        if entry.function == 7:
            return _with(entry, cpuid.OSPKE, bool(self._cr4 & CR4_PKE))
        if entry.function == 0xD and entry.index == 0 and entry.flags & SIGNIFICANT_INDEX:
            return replace(entry, ebx=576 if entry.ecx else 0)  # x87 and SSE are all there is
        return entry


_AMD_EBX = 0x68747541  # "Auth"
