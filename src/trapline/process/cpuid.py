"""What CPUID tells the program: x86-64-v2 with x87, and bus-lock detection where there is one.

Hiding the rest makes a program choose code that every backend runs, and runs the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from trapline.arch import cpuid
from trapline.arch.cpuid import CpuidEntry, Feature
from trapline.process.extended_state import ExtendedState


def _masks(*features: Feature) -> dict[tuple[int, int, str], int]:
    masks: dict[tuple[int, int, str], int] = {}
    for feature in features:
        key = (feature.function, feature.index, feature.register)
        masks[key] = masks.get(key, 0) | feature.mask
    return masks


_SHOWN = _masks(
    *(cpuid.SSE3, cpuid.SSSE3, cpuid.CX16, cpuid.SSE4_1, cpuid.SSE4_2, cpuid.POPCNT),
    *(cpuid.XSAVE, cpuid.OSXSAVE),
    *(cpuid.FPU, cpuid.DE, cpuid.PSE, cpuid.TSC, cpuid.MSR, cpuid.PAE, cpuid.CX8, cpuid.APIC),
    *(cpuid.PGE, cpuid.CMOV, cpuid.PAT, cpuid.CLFSH, cpuid.MMX, cpuid.FXSR, cpuid.SSE),
    *(cpuid.SSE2,),
    cpuid.BUS_LOCK_DETECT,
    *(cpuid.LAHF_LM, cpuid.SYSCALL, cpuid.NX, cpuid.RDTSCP, cpuid.LM, cpuid.INVARIANT_TSC),
)
_FILTERED = {
    (1, 0): ("ecx", "edx"),
    (7, 0): ("ebx", "ecx", "edx"),
    (0x80000001, 0): ("ecx", "edx"),
}
# AMD repeats some of leaf 1's EDX here (APM 3, "CPUID Fn8000_0001_EDX").
_AMD_REPEATED = 0x0183F3FF
# Processors with x86-64-v2 and no more: Nehalem, and one of AMD's older than its extensions.
# Programs with variants "for" a processor pick them by family and model alone (libgcc's
# __cpu_model), whatever else CPUID says.
_SIGNATURES = {"GenuineIntel": 0x000106A5, "AuthenticAMD": 0x00060FB1}
_HIDDEN_RANGE = range(0x40000000, 0x40010000)  # the hypervisor's own leaves
_EMPTIED = {0x14, 0x19, 0x1D, 0x1E, 0x24, 0x8000000A, 0x8000001F, 0x80000021, 0x80000022}


def for_program(
    supported: Iterable[CpuidEntry], state: ExtendedState, bus_lock_detection: bool
) -> list[CpuidEntry]:
    """The leaves a program's processor shows, out of those that the hypervisor supports."""
    shown = []
    supported = list(supported)
    signature = _SIGNATURES.get(_vendor(supported))
    for entry in supported:
        if entry.function in _HIDDEN_RANGE:
            continue
        entry = _xsave_leaf(entry, state) if entry.function == 0xD else _filter(entry)
        if signature is not None and entry.function in (1, 0x80000001) and entry.eax:
            entry = replace(entry, eax=signature)
        if not bus_lock_detection:
            entry = _hide(entry, cpuid.BUS_LOCK_DETECT)
        shown.append(entry)
    return shown


def _vendor(entries: Iterable[CpuidEntry]) -> str:
    entry = cpuid.find(entries, 0)
    words = (entry.ebx, entry.edx, entry.ecx) if entry else ()
    return b"".join(word.to_bytes(4, "little") for word in words).decode("latin-1")


def _hide(entry: CpuidEntry, feature: Feature) -> CpuidEntry:
    return entry.with_feature(feature, False) if entry.has(feature) else entry


def _filter(entry: CpuidEntry) -> CpuidEntry:
    leaf = (entry.function, entry.index)
    if entry.function in _EMPTIED or (entry.function == 7 and entry.index):
        return replace(entry, eax=0, ebx=0, ecx=0, edx=0)
    if leaf not in _FILTERED:
        return entry
    changes = {}
    for register in _FILTERED[leaf]:
        mask = _SHOWN.get((*leaf, register), 0)
        if leaf == (0x80000001, 0) and register == "edx":
            mask |= _AMD_REPEATED & _SHOWN[1, 0, "edx"]
        changes[register] = getattr(entry, register) & mask
    if leaf == (7, 0):
        changes["eax"] = 0
    return replace(entry, **changes)


def _xsave_leaf(entry: CpuidEntry, state: ExtendedState) -> CpuidEntry:
    """XSAVE with this state, none of its variants."""
    if entry.index == 0:
        return replace(entry, eax=state.xcr0, ebx=state.size, ecx=state.size, edx=0)
    if entry.index > 1 and state.xcr0 >> entry.index & 1:
        return entry
    return replace(entry, eax=0, ebx=0, ecx=0, edx=0)


def hardware_capabilities(entries: Iterable[CpuidEntry]) -> int:
    """AT_HWCAP: CPUID.1:EDX."""
    entry = cpuid.find(entries, 1)
    return entry.edx if entry else 0
