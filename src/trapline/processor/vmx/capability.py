"""Which VMX this processor has: the controls it allows, and the values of its capability MSRs.

Nothing is claimed here that intercepts, entry and leave do not do.
"""

from __future__ import annotations

from typing import Protocol

from trapline.arch import cpuid, msr, registers, vmx
from trapline.arch.cpuid import Feature
from trapline.arch.vmcs import HIGHEST_INDEX

REVISION = 0x54524150
REGION_SIZE = 0x1000
CR3_TARGETS = 4
MSR_LIST_LIMIT = 512  # entries of an MSR area (VMX_MISC, bits 27:25 being 0)


class Features(Protocol):
    """What is asked of a processor model here."""

    @property
    def physical_bits(self) -> int: ...

    @property
    def linear_bits(self) -> int: ...

    def has(self, feature: Feature) -> bool: ...


PIN_MAY = vmx.PIN_EXTERNAL_INTERRUPT | vmx.PIN_NMI | vmx.PIN_VIRTUAL_NMIS
PROC_MAY = (
    vmx.PROC_INTERRUPT_WINDOW
    | vmx.PROC_TSC_OFFSETTING
    | vmx.PROC_HLT
    | vmx.PROC_INVLPG
    | vmx.PROC_MWAIT
    | vmx.PROC_RDPMC
    | vmx.PROC_RDTSC
    | vmx.PROC_CR3_LOAD
    | vmx.PROC_CR3_STORE
    | vmx.PROC_CR8_LOAD
    | vmx.PROC_CR8_STORE
    | vmx.PROC_NMI_WINDOW
    | vmx.PROC_MOV_DR
    | vmx.PROC_UNCONDITIONAL_IO
    | vmx.PROC_IO_BITMAPS
    | vmx.PROC_MONITOR_TRAP_FLAG
    | vmx.PROC_MSR_BITMAPS
    | vmx.PROC_MONITOR
    | vmx.PROC_PAUSE
    | vmx.PROC_SECONDARY
)
_PROC2_ALWAYS = (
    vmx.PROC2_EPT
    | vmx.PROC2_RDTSCP
    | vmx.PROC2_WBINVD
    | vmx.PROC2_UNRESTRICTED_GUEST
    | vmx.PROC2_RDRAND
    | vmx.PROC2_INVPCID
    | vmx.PROC2_RDSEED
)
EXIT_MAY = (
    vmx.EXIT_SAVE_DEBUG_CONTROLS
    | vmx.EXIT_HOST_64
    | vmx.EXIT_ACKNOWLEDGE_INTERRUPT
    | vmx.EXIT_SAVE_PAT
    | vmx.EXIT_LOAD_PAT
    | vmx.EXIT_SAVE_EFER
    | vmx.EXIT_LOAD_EFER
)
ENTRY_MAY = (
    vmx.ENTRY_LOAD_DEBUG_CONTROLS | vmx.ENTRY_IA32E_GUEST | vmx.ENTRY_LOAD_PAT | vmx.ENTRY_LOAD_EFER
)

CR0_FIXED0 = registers.CR0_PE | registers.CR0_NE | registers.CR0_PG
CR0_FIXED1 = 0xFFFFFFFF
CR4_FIXED0 = registers.CR4_VMXE

MISC = vmx.MISC_EFER_LMA_TO_ENTRY | vmx.MISC_ACTIVITY_HLT | vmx.MISC_ACTIVITY_SHUTDOWN
MISC |= vmx.MISC_ACTIVITY_WAIT_SIPI | CR3_TARGETS << vmx.MISC_CR3_TARGETS_SHIFT
MISC |= vmx.MISC_ZERO_LENGTH_INJECTION

EPT_VPID = (
    vmx.EPT_CAP_EXECUTE_ONLY
    | vmx.EPT_CAP_WALK_4
    | vmx.EPT_CAP_UC
    | vmx.EPT_CAP_WB
    | vmx.EPT_CAP_2M
    | vmx.EPT_CAP_1G
    | vmx.EPT_CAP_ACCESSED_DIRTY
)

_CR4_BY_FEATURE = (
    (cpuid.UMIP, registers.CR4_UMIP),
    (cpuid.FSGSBASE, registers.CR4_FSGSBASE),
    (cpuid.PCID, registers.CR4_PCIDE),
    (cpuid.XSAVE, registers.CR4_OSXSAVE),
    (cpuid.SMEP, registers.CR4_SMEP),
    (cpuid.SMAP, registers.CR4_SMAP),
    (cpuid.PKU, registers.CR4_PKE),
    (cpuid.LA57, registers.CR4_LA57),
)
_CR4_ALWAYS = 0x7FF  # VME to OSXMMEXCPT


def cr4_fixed1(model: Features) -> int:
    """CR4 bits that may be 1 in VMX operation."""
    bits = _CR4_ALWAYS | registers.CR4_VMXE
    return bits | sum(bit for feature, bit in _CR4_BY_FEATURE if model.has(feature))


def proc2_may(model: Features) -> int:
    """Secondary controls that may be 1.

    Bus-lock detection came to VMX with the processors that have the debug exception for it; the
    manual enumerates the two apart, our models have both or neither.
    """
    has_detection = model.has(cpuid.BUS_LOCK_DETECT)
    return _PROC2_ALWAYS | (vmx.PROC2_BUS_LOCK_DETECTION if has_detection else 0)


def _allowed(must: int, may: int) -> int:
    return must | (must | may) << 32


def capability_msrs(model: Features) -> dict[int, int]:
    """What RDMSR of 0x480-0x491 returns."""
    basic = REVISION | REGION_SIZE << vmx.BASIC_REGION_SIZE_SHIFT
    basic |= 6 << vmx.BASIC_MEMORY_TYPE_SHIFT | vmx.BASIC_INS_OUTS | vmx.BASIC_TRUE_CONTROLS
    return {
        msr.VMX_BASIC: basic,
        msr.VMX_PINBASED_CTLS: _allowed(vmx.PIN_DEFAULT1, PIN_MAY),
        msr.VMX_PROCBASED_CTLS: _allowed(vmx.PROC_DEFAULT1, PROC_MAY),
        msr.VMX_EXIT_CTLS: _allowed(vmx.EXIT_DEFAULT1, EXIT_MAY),
        msr.VMX_ENTRY_CTLS: _allowed(vmx.ENTRY_DEFAULT1, ENTRY_MAY),
        msr.VMX_MISC: MISC,
        msr.VMX_CR0_FIXED0: CR0_FIXED0,
        msr.VMX_CR0_FIXED1: CR0_FIXED1,
        msr.VMX_CR4_FIXED0: CR4_FIXED0,
        msr.VMX_CR4_FIXED1: cr4_fixed1(model),
        msr.VMX_VMCS_ENUM: HIGHEST_INDEX << 1,
        msr.VMX_PROCBASED_CTLS2: proc2_may(model) << 32,
        msr.VMX_EPT_VPID_CAP: EPT_VPID,
        msr.VMX_TRUE_PINBASED_CTLS: _allowed(vmx.PIN_DEFAULT1, PIN_MAY),
        msr.VMX_TRUE_PROCBASED_CTLS: _allowed(vmx.PROC_TRUE_DEFAULT1, PROC_MAY),
        msr.VMX_TRUE_EXIT_CTLS: _allowed(vmx.EXIT_TRUE_DEFAULT1, EXIT_MAY),
        msr.VMX_TRUE_ENTRY_CTLS: _allowed(vmx.ENTRY_TRUE_DEFAULT1, ENTRY_MAY),
    }
