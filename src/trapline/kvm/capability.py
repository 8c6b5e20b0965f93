"""KVM_CHECK_EXTENSION: which capabilities the software hypervisor has, and to what extent."""

from __future__ import annotations

from trapline.kvm import abi, quirks
from trapline.kvm.abi import Capability
from trapline.kvm.mmu import SLOT_LIMIT

VCPU_LIMIT = 1022  # what one processor cluster holds

_ALWAYS: dict[int, int] = {
    Capability.HLT: 1,
    Capability.USER_MEMORY: 1,
    Capability.SET_TSS_ADDR: 1,
    Capability.EXT_CPUID: 1,
    Capability.NR_VCPUS: VCPU_LIMIT,
    Capability.MAX_VCPUS: VCPU_LIMIT,
    Capability.MAX_VCPU_ID: VCPU_LIMIT,
    Capability.NR_MEMSLOTS: SLOT_LIMIT,
    Capability.MP_STATE: 1,
    Capability.SYNC_MMU: 1,
    Capability.DESTROY_MEMORY_REGION_WORKS: 1,
    Capability.JOIN_MEMORY_REGIONS_WORKS: 1,
    Capability.USER_NMI: 1,
    Capability.SET_GUEST_DEBUG: 1,
    Capability.SET_GUEST_DEBUG2: abi.GUESTDBG_VALID_MASK,
    Capability.SET_IDENTITY_MAP_ADDR: 1,
    Capability.INTERNAL_ERROR_DATA: 1,
    Capability.VCPU_EVENTS: 1,
    Capability.DEBUGREGS: 1,
    Capability.X86_ROBUST_SINGLESTEP: 1,
    Capability.ENABLE_CAP: 1,
    Capability.ENABLE_CAP_VM: 1,
    Capability.CHECK_EXTENSION_VM: 1,
    Capability.XSAVE: 1,
    Capability.XCRS: 1,
    Capability.SYNC_REGS: abi.SYNC_X86_REGS | abi.SYNC_X86_SREGS,
    Capability.READONLY_MEM: 1,
    Capability.IMMEDIATE_EXIT: 1,
    Capability.SPLIT_IRQCHIP: 1,
    Capability.SIGNAL_MSI: 1,
    Capability.TSC_DEADLINE_TIMER: 1,
    Capability.GET_MSR_FEATURES: 1,
    Capability.EXCEPTION_PAYLOAD: 1,
    Capability.DISABLE_QUIRKS: 1,
    Capability.DISABLE_QUIRKS2: abi.QUIRKS,
    Capability.X86_TRIPLE_FAULT_EVENT: 1,
}


def check_extension(capability: int, has_bus_lock_exit: bool) -> int:
    """The value KVM_CHECK_EXTENSION returns."""
    if capability == Capability.X86_BUS_LOCK_EXIT:
        modes = abi.BUS_LOCK_DETECTION_OFF | abi.BUS_LOCK_DETECTION_EXIT
        return modes if has_bus_lock_exit else 0
    if capability == quirks.CAPABILITY:
        return quirks.EVERY
    return _ALWAYS.get(capability, 0)
