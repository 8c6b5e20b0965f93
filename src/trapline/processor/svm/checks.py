"""The consistency checks of VMRUN; what fails one ends in VMEXIT_INVALID.

APM 2, "Canonicalization and Consistency Checks".  Each function yields what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from trapline.arch import cpuid, registers, svm
from trapline.arch.cpuid import Feature
from trapline.arch.debug import DR_UPPER
from trapline.arch.paging import is_valid_pat
from trapline.arch.svm import EventType, Intercept

if TYPE_CHECKING:
    from trapline.processor.svm.vmcb import Vmcb

_EFER_ALWAYS = registers.EFER_SVME | registers.EFER_LME | registers.EFER_LMA
_EFER_BY_FEATURE = (
    (cpuid.SYSCALL, registers.EFER_SCE),
    (cpuid.NX, registers.EFER_NXE),
    (cpuid.FXSR_OPT, registers.EFER_FFXSR),
)
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
_L, _DB = 1 << 9, 1 << 10  # of a VMCB segment's attributes
_EVENT_TYPES = frozenset(map(int, EventType))
_HIGHEST_EXCEPTION, _NMI = 31, 2


class Features(Protocol):
    """What is asked of a processor model here."""

    @property
    def physical_bits(self) -> int: ...

    def has(self, feature: Feature) -> bool: ...


def complaints(vmcb: Vmcb, model: Features) -> Iterator[str]:
    """Everything but what concerns the injected event."""
    yield from _controls(vmcb, model)
    yield from _control_registers(vmcb, model)
    yield from _efer(vmcb, model)
    for name in ("dr6", "dr7"):
        if vmcb.read(name) & DR_UPPER:
            yield f"{name.upper()} has upper bits"


def _controls(vmcb: Vmcb, model: Features) -> Iterator[str]:
    if not vmcb.intercepts(Intercept.VMRUN):
        yield "VMRUN is not intercepted"
    if not vmcb.read("asid"):
        yield "ASID 0 is the host's"
    if vmcb.read("int_ctl") & svm.INT_CTL_V_NMI_ENABLE and not vmcb.intercepts(Intercept.NMI):
        yield "NMI virtualization without NMI intercept"
    for name, number, size in (
        ("iopm_base_pa", Intercept.IOIO, svm.IOPM_SIZE),
        ("msrpm_base_pa", Intercept.MSR, svm.MSRPM_SIZE),
    ):
        if vmcb.intercepts(number) and vmcb.read(name) + size - 1 >> model.physical_bits:
            yield f"{name} too high"
    if vmcb.read("nested_ctl") & svm.NESTED_CTL_NP:
        if not model.has(cpuid.NPT):
            yield "nested paging without NPT"
        if vmcb.read("nested_cr3") >> model.physical_bits:
            yield "nCR3 too high"
        if not is_valid_pat(vmcb.read("g_pat")):
            yield "G_PAT"


def _control_registers(vmcb: Vmcb, model: Features) -> Iterator[str]:
    cr0, cr4 = vmcb.read("cr0"), vmcb.read("cr4")
    if cr0 & registers.CR0_NW and not cr0 & registers.CR0_CD:
        yield "CR0.NW without CR0.CD"
    if cr0 >> 32:
        yield "CR0 has upper bits"
    is_long = vmcb.read("efer") & registers.EFER_LME and cr0 & registers.CR0_PG
    if is_long and vmcb.read("cr3") >> model.physical_bits:
        yield "CR3 too high"
    defined = _CR4_ALWAYS | sum(bit for feature, bit in _CR4_BY_FEATURE if model.has(feature))
    if cr4 & ~defined:
        yield f"CR4 {cr4:#x}"


def _efer(vmcb: Vmcb, model: Features) -> Iterator[str]:
    efer, cr0, cr4 = vmcb.read("efer"), vmcb.read("cr0"), vmcb.read("cr4")
    defined = _EFER_ALWAYS | sum(bit for feature, bit in _EFER_BY_FEATURE if model.has(feature))
    if not efer & registers.EFER_SVME:
        yield "EFER.SVME is clear"
    if efer & ~defined:
        yield f"EFER {efer:#x}"
    if not efer & registers.EFER_LME or not cr0 & registers.CR0_PG:
        return
    if not cr4 & registers.CR4_PAE:
        yield "long mode without CR4.PAE"
    if not cr0 & registers.CR0_PE:
        yield "long mode without CR0.PE"
    attributes = vmcb.read("cs_attributes")
    if cr4 & registers.CR4_PAE and attributes & _L and attributes & _DB:
        yield "CS with L and D"


def event_complaints(event: int) -> Iterator[str]:
    """EVENTINJ (APM 2, "Event Injection"), if it is valid at all."""
    if not event & svm.EVENT_VALID:
        return
    kind, vector = event >> 8 & 7, event & 0xFF
    if kind not in _EVENT_TYPES:
        yield f"event type {kind} is reserved"
    elif kind == EventType.EXCEPTION and (vector > _HIGHEST_EXCEPTION or vector == _NMI):
        yield f"no exception has vector {vector}"
