"""Checks of VM entry on the guest state (exit 33).

Each function yields what is wrong, in the manual's order (SDM 3C, "Checking and Loading Guest
State"); an empty answer means that the guest may run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trapline.arch import cpuid, msr, registers, vmx
from trapline.arch.debug import (
    DR7_FIXED_1,
    DR_UPPER,
    PAYLOAD_ENABLED_BREAKPOINT,
)
from trapline.arch.paging import PTE_P, is_valid_pat
from trapline.arch.vmcs import Field
from trapline.arch.vmx import Activity, EntryFailure
from trapline.processor.memory.host import load
from trapline.processor.vmx import capability
from trapline.processor.vmx.capability import Features
from trapline.processor.vmx.control_checks import EFER_DEFINED, is_canonical
from trapline.processor.vmx.failure import Complaint
from trapline.processor.vmx.segment_checks import segment_complaints

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.vmx.vmcs import Vmcs

_BS, _RTM = 1 << 14, 1 << 16


def debugctl_supported(model: Features) -> int:
    """The bits of IA32_DEBUGCTL this processor has."""
    bits = msr.DEBUGCTL_LBR | msr.DEBUGCTL_BTF
    if model.has(cpuid.BUS_LOCK_DETECT):
        bits |= msr.DEBUGCTL_BLD
    if model.has(cpuid.RTM):
        bits |= msr.DEBUGCTL_RTM
    return bits


def guest_complaints(core: Core, vmcs: Vmcs) -> Iterator[Complaint]:
    """Everything but what concerns the injected event."""
    model = core.model
    is_unrestricted = bool(vmcs.secondary() & vmx.PROC2_UNRESTRICTED_GUEST)
    texts = (
        *_control_registers(vmcs, model, is_unrestricted),
        *_msrs(vmcs, model),
        *segment_complaints(vmcs, model, is_unrestricted),
        *_rip_and_flags(vmcs, model),
        *_activity(vmcs),
        *_interruptibility(vmcs),
        *_pending_debug(vmcs, model),
    )
    yield from (Complaint(text) for text in texts)
    pointer = vmcs.read(Field.VMCS_LINK_POINTER)
    if pointer != vmx.LINK_POINTER_NONE and not _is_vmcs(core, pointer):
        yield Complaint(f"VMCS link pointer {pointer:#x}", EntryFailure.LINK_POINTER)
    if vmcs.has_pae_paging():
        reserved = 0x1E6 | -1 << model.physical_bits & (1 << 64) - 1
        for i, pdpte in enumerate(pdptes(core, vmcs)):
            if pdpte & PTE_P and pdpte & reserved:
                yield Complaint(f"PDPTE{i} {pdpte:#x}", EntryFailure.PDPTE)


def _is_vmcs(core: Core, physical: int) -> bool:
    """Whether an ordinary VMCS region is there; shadowing is not offered."""
    if physical & 0xFFF or physical >> core.model.physical_bits:
        return False
    host = core.bus.host(physical)
    return host is not None and load(host, 4) == capability.REVISION


def pdptes(core: Core, vmcs: Vmcs) -> list[int]:
    """The PDPTEs of PAE paging: with EPT they are fields; without, they lie at CR3."""
    if vmcs.secondary() & vmx.PROC2_EPT:
        return [vmcs.read(Field.GUEST_PDPTR0 + 2 * i) for i in range(4)]
    at = vmcs.read(Field.GUEST_CR3) & registers.CR3_PAE_BASE
    host = core.bus.host(at)
    if host is None:
        return [core.bus.read_device(at + 8 * i, 8) for i in range(4)]
    return [load(host + 8 * i, 8) for i in range(4)]


def _control_registers(vmcs: Vmcs, model: Features, is_unrestricted: bool) -> Iterator[str]:
    cr0, cr4 = vmcs.read(Field.GUEST_CR0), vmcs.read(Field.GUEST_CR4)
    entry = vmcs.read(Field.VM_ENTRY_CONTROLS)
    must = capability.CR0_FIXED0
    if is_unrestricted:
        must &= ~(registers.CR0_PE | registers.CR0_PG)
    if must & ~cr0 or cr0 & ~capability.CR0_FIXED1:
        yield f"CR0 {cr0:#x}"
    if cr0 & registers.CR0_PG and not cr0 & registers.CR0_PE:
        yield f"CR0 {cr0:#x}: paging without protection"
    if capability.CR4_FIXED0 & ~cr4 or cr4 & ~capability.cr4_fixed1(model):
        yield f"CR4 {cr4:#x}"
    if entry & vmx.ENTRY_IA32E_GUEST:
        if not cr0 & registers.CR0_PG or not cr4 & registers.CR4_PAE:
            yield "IA-32e mode guest without PG and PAE"
    elif cr4 & registers.CR4_PCIDE:
        yield "PCIDE outside IA-32e mode"
    if vmcs.read(Field.GUEST_CR3) >> model.physical_bits:
        yield "CR3 too high"


def _msrs(vmcs: Vmcs, model: Features) -> Iterator[str]:
    entry = vmcs.read(Field.VM_ENTRY_CONTROLS)
    if entry & vmx.ENTRY_LOAD_DEBUG_CONTROLS:
        debugctl = vmcs.read(Field.GUEST_IA32_DEBUGCTL)
        if debugctl & ~debugctl_supported(model):
            yield f"DEBUGCTL {debugctl:#x}"
        if vmcs.read(Field.GUEST_DR7) & DR_UPPER:
            yield "DR7"
    for field in (Field.GUEST_SYSENTER_ESP, Field.GUEST_SYSENTER_EIP):
        if not is_canonical(vmcs.read(field), model):
            yield f"{field.name} is not canonical"
    if entry & vmx.ENTRY_LOAD_PAT and not is_valid_pat(vmcs.read(Field.GUEST_IA32_PAT)):
        yield "PAT"
    if entry & vmx.ENTRY_LOAD_EFER:
        efer = vmcs.read(Field.GUEST_IA32_EFER)
        is_long = bool(entry & vmx.ENTRY_IA32E_GUEST)
        has_pg = vmcs.read(Field.GUEST_CR0) & registers.CR0_PG
        lma, lme = bool(efer & registers.EFER_LMA), bool(efer & registers.EFER_LME)
        if efer & ~EFER_DEFINED or lma != is_long or (has_pg and lma != lme):
            yield f"EFER {efer:#x}"


def _rip_and_flags(vmcs: Vmcs, model: Features) -> Iterator[str]:
    rip, rflags = vmcs.read(Field.GUEST_RIP), vmcs.read(Field.GUEST_RFLAGS)
    is_long = vmcs.read(Field.VM_ENTRY_CONTROLS) & vmx.ENTRY_IA32E_GUEST
    if not is_long or not vmcs.read(Field.GUEST_CS_AR_BYTES) >> 13 & 1:
        if rip >> 32:
            yield f"RIP {rip:#x} outside 64-bit mode"
    elif rip >> model.linear_bits not in (0, (1 << 64 - model.linear_bits) - 1):
        yield f"RIP {rip:#x}"
    if rflags & registers.RFLAGS_RESERVED or not rflags & registers.RFLAGS_FIXED_1:
        yield f"RFLAGS {rflags:#x}"
    is_protected = vmcs.read(Field.GUEST_CR0) & registers.CR0_PE
    if rflags & registers.RFLAGS_VM and (is_long or not is_protected):
        yield "virtual-8086 mode outside protected mode"


def _activity(vmcs: Vmcs) -> Iterator[str]:
    activity = vmcs.read(Field.GUEST_ACTIVITY_STATE)
    if activity > Activity.WAIT_FOR_SIPI:
        yield f"activity state {activity}"
    if activity == Activity.HLT and vmcs.read(Field.GUEST_SS_AR_BYTES) >> 5 & 3:
        yield "HLT with SS.DPL not 0"
    if activity and vmcs.read(Field.GUEST_INTERRUPTIBILITY_INFO) & 3:
        yield "blocking by STI or MOV SS while not active"


def _interruptibility(vmcs: Vmcs) -> Iterator[str]:
    blocking = vmcs.read(Field.GUEST_INTERRUPTIBILITY_INFO)
    sti, mov_ss = blocking & vmx.INTERRUPTIBILITY_STI, blocking & vmx.INTERRUPTIBILITY_MOV_SS
    if blocking >> 5 or blocking & (vmx.INTERRUPTIBILITY_SMI | vmx.INTERRUPTIBILITY_ENCLAVE):
        yield f"interruptibility state {blocking:#x}"
    if sti and mov_ss:
        yield "blocking by STI and by MOV SS"
    if sti and not vmcs.read(Field.GUEST_RFLAGS) & registers.RFLAGS_IF:
        yield "blocking by STI with IF clear"


def _pending_debug(vmcs: Vmcs, model: Features) -> Iterator[str]:
    """SDM 3C, "Checks on Guest Non-Register State"; bit 11 where bus-lock detection exists."""
    pending = vmcs.read(Field.GUEST_PENDING_DBG_EXCEPTIONS)
    defined = 0xF | PAYLOAD_ENABLED_BREAKPOINT | _BS
    defined |= _RTM if model.has(cpuid.RTM) else 0
    # Not stated in the manual we have; the field takes what a #DB payload has.
    defined |= 1 << 11 if model.has(cpuid.BUS_LOCK_DETECT) else 0
    if pending & ~defined:
        yield f"pending debug exceptions {pending:#x}"
    blocking = vmcs.read(Field.GUEST_INTERRUPTIBILITY_INFO)
    if blocking & 3 or vmcs.read(Field.GUEST_ACTIVITY_STATE) == Activity.HLT:
        has_tf = bool(vmcs.read(Field.GUEST_RFLAGS) & registers.RFLAGS_TF)
        has_btf = bool(vmcs.read(Field.GUEST_IA32_DEBUGCTL) & msr.DEBUGCTL_BTF)
        if bool(pending & _BS) != (has_tf and not has_btf):
            yield f"pending debug exceptions {pending:#x}: BS does not go with TF"
    if pending & _RTM:
        alone = PAYLOAD_ENABLED_BREAKPOINT | _RTM
        if pending & ~alone or not pending & PAYLOAD_ENABLED_BREAKPOINT:
            yield f"pending debug exceptions {pending:#x}: RTM with others"
        if blocking & vmx.INTERRUPTIBILITY_MOV_SS:
            yield "pending RTM debug exception while MOV SS blocks"


_INJECTABLE = {
    Activity.ACTIVE: (0, 2, 3, 4, 5, 6, 7),
    Activity.HLT: (0, 2, 7),
    Activity.SHUTDOWN: (2,),
    Activity.WAIT_FOR_SIPI: (),
}


def injection_complaints(vmcs: Vmcs) -> Iterator[Complaint]:
    """What the guest state must be for the event to be injected."""
    information = vmcs.entry_info
    kind, vector = information >> 8 & 7, information & vmx.EVENT_VECTOR
    blocking = vmcs.read(Field.GUEST_INTERRUPTIBILITY_INFO)
    activity = Activity(vmcs.read(Field.GUEST_ACTIVITY_STATE))
    if kind == vmx.EventType.EXTERNAL_INTERRUPT:
        if not vmcs.read(Field.GUEST_RFLAGS) & registers.RFLAGS_IF:
            yield Complaint("external interrupt injected with IF clear")
        if blocking & 3:
            yield Complaint("external interrupt injected while STI or MOV SS blocks")
    if kind == vmx.EventType.NMI:
        if blocking & vmx.INTERRUPTIBILITY_MOV_SS:
            yield Complaint("NMI injected while MOV SS blocks")
        if blocking & vmx.INTERRUPTIBILITY_STI:
            # A processor may require it; this qualification is for those that do.
            yield Complaint("NMI injected while STI blocks", EntryFailure.NMI_INJECTION)
        pin = vmcs.read(Field.PIN_BASED_VM_EXEC_CONTROL)
        if pin & vmx.PIN_VIRTUAL_NMIS and blocking & vmx.INTERRUPTIBILITY_NMI:
            yield Complaint("NMI injected while NMIs are blocked")
    is_fitting = kind in _INJECTABLE[activity]
    if activity == Activity.HLT and kind == vmx.EventType.HARDWARE_EXCEPTION:
        is_fitting = vector in (1, 18)  # #DB and #MC
    if not is_fitting and not (activity == Activity.SHUTDOWN and (kind, vector) == (3, 18)):
        yield Complaint(f"event {information:#x} injected in activity state {activity}")


def fix_dr7(dr7: int) -> int:
    """DR7 as it is loaded: some bits of the field are ignored."""
    # SDM 3C, "Loading Guest Control Registers, Debug Registers, and MSRs".
    return dr7 & ~0xD000 | DR7_FIXED_1
