"""Processor models: which features each has, and what CPUID answers on it.

Every model executes the same instructions (x86-64-v2 and CMPXCHG16B); they differ in vendor,
signature, and in what they can tell of bus locks.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from trapline.arch import cpuid
from trapline.arch.cpuid import SIGNIFICANT_INDEX, CpuidEntry, Feature
from trapline.arch.registers import CR4_OSXSAVE, CR4_PKE
from trapline.processor.fault import HostLimit
from trapline.processor.state import State

INTEL, AMD = "GenuineIntel", "AuthenticAMD"
_CACHE_LINE = 64
_SVM_REVISION, _ASIDS = 1, 0x8000

FEATURES: dict[str, Feature] = {
    name.lower(): one for name, one in vars(cpuid).items() if isinstance(one, Feature)
}
"""Every feature by its name."""

_ABSENT = {
    "abm", "adx", "aes", "avx", "avx2", "bmi1", "bmi2", "clwb", "cmpccxadd", "f16c", "fma", "ibt",
    "movbe", "movdir64b", "movdiri", "pclmulqdq", "rdrand", "rdseed", "serialize", "sha", "shstk",
    "xsavec", "xsaveopt", "xsaves",
}  # fmt: skip
"""Those that promise instructions which no model executes."""
CHOICES = sorted(FEATURES.keys() - _ABSENT)
"""What `--cpu MODEL,+name` takes."""


def _named(names: str) -> frozenset[Feature]:
    return frozenset(FEATURES[name] for name in names.split())


_BASE = _named(
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clfsh mmx fxsr sse"
    " sse2 sse3 ssse3 cx16 sse4_1 sse4_2 popcnt xsave smep smap lahf_lm syscall nx rdtscp lm"
    " gbpages invariant_tsc fcs_fds_deprecated monitor"
)


@dataclass(frozen=True, slots=True)
class Model:
    """One kind of processor."""

    name: str
    vendor: str
    signature: int  # CPUID.1:EAX
    brand: str
    features: frozenset[Feature]
    has_split_lock_ac: bool = False  # MSR TEST_CTRL bit 29, enumerated or not
    physical_bits: int = 52
    _leaves: dict[tuple[int, int], CpuidEntry] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def is_amd(self) -> bool:
        return self.vendor == AMD

    @property
    def linear_bits(self) -> int:
        return 57 if self.has(cpuid.LA57) else 48

    @property
    def xcr0(self) -> int:
        """The state components that XCR0 may enable."""
        return 3 if self.has(cpuid.XSAVE) else 0

    def has(self, feature: Feature) -> bool:
        return feature in self.features

    def entries(self) -> list[CpuidEntry]:
        """Every leaf, as it stands when the operating system has enabled nothing yet."""
        if not self._leaves:
            self._leaves.update(((one.function, one.index), one) for one in _leaves(self))
        return list(self._leaves.values())

    def cpuid(
        self, state: State, function: int, index: int, apic_id: int = 0
    ) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX of CPUID, with the bits that follow CR4 and the processor."""
        self.entries()
        leaves = self._leaves
        highest = leaves[0x80000000 if function >= 0x80000000 else 0, 0].eax
        if function > highest:
            # SDM 2A, CPUID: Intel answers with the highest basic leaf, AMD with zeros.
            if self.is_amd:
                return 0, 0, 0, 0
            function = leaves[0, 0].eax
        entry = leaves.get((function, index))
        if entry is None:
            entry = leaves.get((function, 0))
            if entry is None or entry.flags & SIGNIFICANT_INDEX:
                return (0, 0, index & 0xFF, apic_id) if function == 0xB else (0, 0, 0, 0)
        eax, ebx, ecx, edx = entry.eax, entry.ebx, entry.ecx, entry.edx
        match function:
            case 1:
                ebx |= apic_id << 24
                if state.cr4 & CR4_OSXSAVE:
                    ecx |= cpuid.OSXSAVE.mask
            case 7 if index == 0 and state.cr4 & CR4_PKE:
                ecx |= cpuid.OSPKE.mask
            case 0xB:
                edx = apic_id
        return eax, ebx, ecx, edx


def model(text: str) -> Model:
    """A model by `NAME` or `NAME,+feature,-feature`."""
    name, *changes = text.split(",")
    if name not in MODELS:
        near = _near(name, MODELS)
        raise HostLimit(
            f"There is no processor model {name!r}{near}; there are {', '.join(MODELS)}."
        )
    chosen = MODELS[name]
    features = set(chosen.features)
    for change in changes:
        if change[:1] not in ("+", "-"):
            raise HostLimit(f"{change!r} is neither +FEATURE nor -FEATURE.")
        wanted = change[1:].lower().replace("-", "_")
        if wanted not in FEATURES:
            raise HostLimit(f"There is no feature {change[1:]!r}{_near(wanted, CHOICES)}.")
        if wanted in _ABSENT and change[0] == "+":
            raise HostLimit(
                f"{wanted} is not implemented by this processor: its instructions are undefined;"
                " `trapline cpus --features` lists what is."
            )
        (features.add if change[0] == "+" else features.discard)(FEATURES[wanted])
    if not changes:
        return chosen
    split_lock_ac = chosen.has_split_lock_ac
    if (cpuid.CORE_CAPABILITIES in features) != chosen.has(cpuid.CORE_CAPABILITIES):
        split_lock_ac = cpuid.CORE_CAPABILITIES in features
    return replace(chosen, name=text, features=frozenset(features), has_split_lock_ac=split_lock_ac)


def _near(name: str, known: Iterable[str]) -> str:
    """A hint, where something much like it is known."""
    near = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


# -- the leaves ------------------------------------------------------------------------------------


def _words(features: frozenset[Feature], function: int, index: int) -> CpuidEntry:
    entry = CpuidEntry(function, index)
    for feature in features:
        entry = entry.with_feature(feature) if _is_in(feature, entry) else entry
    return entry


def _is_in(feature: Feature, entry: CpuidEntry) -> bool:
    return (feature.function, feature.index) == (entry.function, entry.index)


def _text(text: str, registers: int) -> list[int]:
    raw = text.encode().ljust(4 * registers, b"\0")
    return [int.from_bytes(raw[i : i + 4], "little") for i in range(0, 4 * registers, 4)]


def _leaves(chosen: Model) -> list[CpuidEntry]:
    """The static leaves of a model."""
    features = chosen.features
    ebx, edx, ecx = _text(chosen.vendor, 3)
    one = replace(
        _words(features, 1, 0),
        eax=chosen.signature,
        ebx=(_CACHE_LINE // 8) << 8 | 1 << 16,
    )
    highest_extended = 0x8000001D if chosen.is_amd else 0x80000008
    extended = _words(features, 0x80000001, 0)
    leaves = [
        CpuidEntry(0, eax=0xD, ebx=ebx, ecx=ecx, edx=edx),
        one,
        *_sevens(features),
        CpuidEntry(0xB, 0, SIGNIFICANT_INDEX, eax=0, ebx=1, ecx=0x100),
        CpuidEntry(0xB, 1, SIGNIFICANT_INDEX, eax=0, ebx=1, ecx=0x201),
        *_xsave(features, chosen.xcr0),
        CpuidEntry(0x80000000, eax=highest_extended, ebx=ebx, ecx=ecx, edx=edx),
        *_brand(chosen.brand),
        CpuidEntry(0x80000006, ecx=_CACHE_LINE | 8 << 12 | 1024 << 16),
        _words(features, 0x80000007, 0),
        CpuidEntry(0x80000008, eax=chosen.physical_bits | chosen.linear_bits << 8),
    ]
    if chosen.is_amd:
        # APM 3, CPUID Fn8000_0001: EDX repeats these bits of Fn0000_0001.
        repeated = one.edx & 0x0183F3FF
        leaves.append(replace(extended, eax=chosen.signature, edx=extended.edx | repeated))
        leaves += _amd_caches()
        svm = _words(features, 0x8000000A, 0)
        leaves.append(replace(svm, eax=_SVM_REVISION, ebx=_ASIDS) if svm.edx else svm)
    else:
        leaves.append(extended)
        leaves += _intel_caches()
    return leaves


def _sevens(features: frozenset[Feature]) -> list[CpuidEntry]:
    words = [_words(features, 7, index) for index in range(3)]
    words[0] = replace(words[0], eax=2)
    return [replace(word, flags=SIGNIFICANT_INDEX) for word in words]


def _xsave(features: frozenset[Feature], xcr0: int) -> list[CpuidEntry]:
    size = 512 + 64 if xcr0 else 0
    one = replace(_words(features, 0xD, 1), flags=SIGNIFICANT_INDEX, ebx=size)
    return [CpuidEntry(0xD, 0, SIGNIFICANT_INDEX, eax=xcr0, ebx=size, ecx=size), one]


def _brand(brand: str) -> list[CpuidEntry]:
    words = _text(brand, 12)
    return [CpuidEntry(0x80000002 + i, 0, 0, *words[4 * i : 4 * i + 4]) for i in range(3)]


def _cache(kind: int, level: int, ways: int, sets: int) -> tuple[int, int, int]:
    """EAX, EBX, ECX of leaf 4 or 0x8000001D."""
    return kind | level << 5 | 1 << 8, (_CACHE_LINE - 1) | (ways - 1) << 22, sets - 1


_CACHES = (
    _cache(1, 1, 8, 64),  # 32 KiB data
    _cache(2, 1, 8, 64),  # 32 KiB instructions
    _cache(3, 2, 16, 1024),  # 1 MiB
    _cache(3, 3, 16, 16384),  # 16 MiB
    (0, 0, 0),
)


def _cache_leaves(function: int) -> list[CpuidEntry]:
    return [CpuidEntry(function, i, SIGNIFICANT_INDEX, *cache) for i, cache in enumerate(_CACHES)]


def _intel_caches() -> list[CpuidEntry]:
    # Descriptors 0xFF (see leaf 4), 0xFE (TLBs: see leaf 0x18), 0xF0 (64-byte prefetch).
    return [CpuidEntry(2, eax=0x00FEFF01, ebx=0xF0), *_cache_leaves(4)]


def _amd_caches() -> list[CpuidEntry]:
    l1 = _CACHE_LINE | 1 << 8 | 8 << 16 | 32 << 24
    return [CpuidEntry(0x80000005, ecx=l1, edx=l1), *_cache_leaves(0x8000001D)]


_AC_AND_DB = _BASE | _named("vmx bus_lock_detect core_capabilities")
_SVM = _named("svm npt lbrv nrips flush_by_asid decode_assists vnmi")
MODELS: dict[str, Model] = {
    one.name: one
    for one in (
        Model("legacy", INTEL, 0x50654, "Trapline legacy (no bus lock detection)",
              _BASE | _named("vmx")),
        # Linux split_lock_cpu_ids: TEST_CTRL is there, IA32_CORE_CAPABILITIES is not.
        Model("icelake", INTEL, 0x606A6, "Trapline icelake (split lock #AC)",
              _BASE | _named("vmx"), has_split_lock_ac=True),
        Model("sapphire-rapids", INTEL, 0x806F8, "Trapline sapphire-rapids (#AC, bus lock #DB)",
              _AC_AND_DB, has_split_lock_ac=True),
        Model("zen4", AMD, 0xA10F11, "Trapline zen4 (no bus lock detection)", _BASE | _SVM),
        Model("zen5", AMD, 0xB00F21, "Trapline zen5 (bus lock #DB)",
              _BASE | _SVM | _named("bus_lock_detect bus_lock_threshold")),
        Model("max", INTEL, 0xA06D1, "Trapline max",
              _AC_AND_DB | _named("uc_lock_disable la57 pcid invpcid umip pku fsgsbase"),
              has_split_lock_ac=True),
    )
}  # fmt: skip
