"""CPUID: one leaf's answer as a value, and where each feature bit stands.

Which features a processor model has is the processor's; which ones a guest sees, the hypervisor's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

SIGNIFICANT_INDEX = 1  # CpuidEntry.flags: the answer depends on ECX (KVM_CPUID_FLAG)


@dataclass(frozen=True, slots=True)
class Feature:
    """Where a feature is enumerated."""

    function: int
    index: int
    register: str
    position: int

    @property
    def mask(self) -> int:
        return 1 << self.position


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """The answer to CPUID with EAX = function and ECX = index."""

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0

    def has(self, feature: Feature) -> bool:
        """Whether this entry is the feature's and shows it."""
        if (self.function, self.index) != (feature.function, feature.index):
            return False
        return bool(getattr(self, feature.register) & feature.mask)

    def with_feature(self, feature: Feature, present: bool = True) -> CpuidEntry:
        """A copy that shows the feature, or hides it."""
        old = getattr(self, feature.register)
        new = old | feature.mask if present else old & ~feature.mask
        return replace(self, **{feature.register: new})


def find(entries: Iterable[CpuidEntry], function: int, index: int = 0) -> CpuidEntry | None:
    """The entry that answers this leaf, as kvm_find_cpuid_entry_index() looks it up."""
    for entry in entries:
        indexed = entry.flags & SIGNIFICANT_INDEX
        if entry.function == function and (not indexed or entry.index == index):
            return entry
    return None


def has(entries: Iterable[CpuidEntry], feature: Feature) -> bool:
    """Whether the leaves show the feature."""
    entry = find(entries, feature.function, feature.index)
    return entry is not None and bool(getattr(entry, feature.register) & feature.mask)


SSE3 = Feature(1, 0, "ecx", 0)
PCLMULQDQ = Feature(1, 0, "ecx", 1)
MONITOR = Feature(1, 0, "ecx", 3)
VMX = Feature(1, 0, "ecx", 5)
SSSE3 = Feature(1, 0, "ecx", 9)
FMA = Feature(1, 0, "ecx", 12)
CX16 = Feature(1, 0, "ecx", 13)
PCID = Feature(1, 0, "ecx", 17)
SSE4_1 = Feature(1, 0, "ecx", 19)
SSE4_2 = Feature(1, 0, "ecx", 20)
X2APIC = Feature(1, 0, "ecx", 21)
MOVBE = Feature(1, 0, "ecx", 22)
POPCNT = Feature(1, 0, "ecx", 23)
TSC_DEADLINE = Feature(1, 0, "ecx", 24)
AES = Feature(1, 0, "ecx", 25)
XSAVE = Feature(1, 0, "ecx", 26)
OSXSAVE = Feature(1, 0, "ecx", 27)
AVX = Feature(1, 0, "ecx", 28)
F16C = Feature(1, 0, "ecx", 29)
RDRAND = Feature(1, 0, "ecx", 30)
HYPERVISOR = Feature(1, 0, "ecx", 31)

FPU = Feature(1, 0, "edx", 0)
VME = Feature(1, 0, "edx", 1)
DE = Feature(1, 0, "edx", 2)
PSE = Feature(1, 0, "edx", 3)
TSC = Feature(1, 0, "edx", 4)
MSR = Feature(1, 0, "edx", 5)
PAE = Feature(1, 0, "edx", 6)
MCE = Feature(1, 0, "edx", 7)
CX8 = Feature(1, 0, "edx", 8)
APIC = Feature(1, 0, "edx", 9)
SEP = Feature(1, 0, "edx", 11)
MTRR = Feature(1, 0, "edx", 12)
PGE = Feature(1, 0, "edx", 13)
MCA = Feature(1, 0, "edx", 14)
CMOV = Feature(1, 0, "edx", 15)
PAT = Feature(1, 0, "edx", 16)
PSE36 = Feature(1, 0, "edx", 17)
CLFSH = Feature(1, 0, "edx", 19)
MMX = Feature(1, 0, "edx", 23)
FXSR = Feature(1, 0, "edx", 24)
SSE = Feature(1, 0, "edx", 25)
SSE2 = Feature(1, 0, "edx", 26)
HTT = Feature(1, 0, "edx", 28)

FSGSBASE = Feature(7, 0, "ebx", 0)
TSC_ADJUST = Feature(7, 0, "ebx", 1)
BMI1 = Feature(7, 0, "ebx", 3)
HLE = Feature(7, 0, "ebx", 4)
AVX2 = Feature(7, 0, "ebx", 5)
SMEP = Feature(7, 0, "ebx", 7)
BMI2 = Feature(7, 0, "ebx", 8)
ERMS = Feature(7, 0, "ebx", 9)
INVPCID = Feature(7, 0, "ebx", 10)
RTM = Feature(7, 0, "ebx", 11)
FCS_FDS_DEPRECATED = Feature(7, 0, "ebx", 13)
RDSEED = Feature(7, 0, "ebx", 18)
ADX = Feature(7, 0, "ebx", 19)
SMAP = Feature(7, 0, "ebx", 20)
CLFLUSHOPT = Feature(7, 0, "ebx", 23)
CLWB = Feature(7, 0, "ebx", 24)
SHA = Feature(7, 0, "ebx", 29)

UMIP = Feature(7, 0, "ecx", 2)
PKU = Feature(7, 0, "ecx", 3)
OSPKE = Feature(7, 0, "ecx", 4)
SHSTK = Feature(7, 0, "ecx", 7)
LA57 = Feature(7, 0, "ecx", 16)
RDPID = Feature(7, 0, "ecx", 22)
BUS_LOCK_DETECT = Feature(7, 0, "ecx", 24)
MOVDIRI = Feature(7, 0, "ecx", 27)
MOVDIR64B = Feature(7, 0, "ecx", 28)

FSRM = Feature(7, 0, "edx", 4)
SERIALIZE = Feature(7, 0, "edx", 14)
IBT = Feature(7, 0, "edx", 20)
SPEC_CTRL = Feature(7, 0, "edx", 26)
ARCH_CAPABILITIES = Feature(7, 0, "edx", 29)
CORE_CAPABILITIES = Feature(7, 0, "edx", 30)

CMPCCXADD = Feature(7, 1, "eax", 7)
UC_LOCK_DISABLE = Feature(7, 2, "edx", 6)

XSAVEOPT = Feature(0xD, 1, "eax", 0)
XSAVEC = Feature(0xD, 1, "eax", 1)
XGETBV_ECX1 = Feature(0xD, 1, "eax", 2)
XSAVES = Feature(0xD, 1, "eax", 3)

LAHF_LM = Feature(0x80000001, 0, "ecx", 0)
SVM = Feature(0x80000001, 0, "ecx", 2)
CR8_LEGACY = Feature(0x80000001, 0, "ecx", 4)
ABM = Feature(0x80000001, 0, "ecx", 5)
PREFETCHW = Feature(0x80000001, 0, "ecx", 8)
SYSCALL = Feature(0x80000001, 0, "edx", 11)
NX = Feature(0x80000001, 0, "edx", 20)
FXSR_OPT = Feature(0x80000001, 0, "edx", 25)
GBPAGES = Feature(0x80000001, 0, "edx", 26)
RDTSCP = Feature(0x80000001, 0, "edx", 27)
LM = Feature(0x80000001, 0, "edx", 29)
INVARIANT_TSC = Feature(0x80000007, 0, "edx", 8)

NPT = Feature(0x8000000A, 0, "edx", 0)
LBRV = Feature(0x8000000A, 0, "edx", 1)
SVM_LOCK = Feature(0x8000000A, 0, "edx", 2)
NRIPS = Feature(0x8000000A, 0, "edx", 3)
TSC_SCALE = Feature(0x8000000A, 0, "edx", 4)
VMCB_CLEAN = Feature(0x8000000A, 0, "edx", 5)
FLUSH_BY_ASID = Feature(0x8000000A, 0, "edx", 6)
DECODE_ASSISTS = Feature(0x8000000A, 0, "edx", 7)
PAUSE_FILTER = Feature(0x8000000A, 0, "edx", 10)
PAUSE_THRESHOLD = Feature(0x8000000A, 0, "edx", 12)
AVIC = Feature(0x8000000A, 0, "edx", 13)
V_VMSAVE_VMLOAD = Feature(0x8000000A, 0, "edx", 15)
VGIF = Feature(0x8000000A, 0, "edx", 16)
X2AVIC = Feature(0x8000000A, 0, "edx", 18)
V_SPEC_CTRL = Feature(0x8000000A, 0, "edx", 20)
VNMI = Feature(0x8000000A, 0, "edx", 25)
SVME_ADDR_CHK = Feature(0x8000000A, 0, "edx", 28)
BUS_LOCK_THRESHOLD = Feature(0x8000000A, 0, "edx", 29)
IDLE_HLT = Feature(0x8000000A, 0, "edx", 30)
