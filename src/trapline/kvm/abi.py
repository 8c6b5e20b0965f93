"""KVM's numbers: ioctl codes, capabilities, exit reasons, flags (linux/kvm.h, asm/kvm.h).

Numbers only; the structures they go with are in `structures`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

API_VERSION: Final = 12

# -- ioctls on /dev/kvm -------------------------------------------------------------------------
GET_API_VERSION: Final = 0xAE00
CREATE_VM: Final = 0xAE01
GET_MSR_INDEX_LIST: Final = 0xC004AE02
CHECK_EXTENSION: Final = 0xAE03  # on the VM too
GET_VCPU_MMAP_SIZE: Final = 0xAE04
GET_SUPPORTED_CPUID: Final = 0xC008AE05
GET_MSR_FEATURE_INDEX_LIST: Final = 0xC004AE0A

# -- ioctls on a VM -----------------------------------------------------------------------------
CREATE_VCPU: Final = 0xAE41
GET_DIRTY_LOG: Final = 0x4010AE42
SET_USER_MEMORY_REGION: Final = 0x4020AE46
SET_TSS_ADDR: Final = 0xAE47
SET_IDENTITY_MAP_ADDR: Final = 0x4008AE48
ENABLE_CAP: Final = 0x4068AEA3
SIGNAL_MSI: Final = 0x4020AEA5

# -- ioctls on a vCPU ---------------------------------------------------------------------------
RUN: Final = 0xAE80
GET_REGS: Final = 0x8090AE81
SET_REGS: Final = 0x4090AE82
GET_SREGS: Final = 0x8138AE83
SET_SREGS: Final = 0x4138AE84
TRANSLATE: Final = 0xC018AE85
INTERRUPT: Final = 0x4004AE86
GET_MSRS: Final = 0xC008AE88
SET_MSRS: Final = 0x4008AE89
SET_SIGNAL_MASK: Final = 0x4004AE8B
GET_FPU: Final = 0x81A0AE8C
SET_FPU: Final = 0x41A0AE8D
SET_CPUID2: Final = 0x4008AE90
GET_CPUID2: Final = 0xC008AE91
GET_LAPIC: Final = 0x8400AE8E
SET_LAPIC: Final = 0x4400AE8F
GET_MP_STATE: Final = 0x8004AE98
SET_MP_STATE: Final = 0x4004AE99
NMI: Final = 0xAE9A
SET_GUEST_DEBUG: Final = 0x4048AE9B
GET_VCPU_EVENTS: Final = 0x8040AE9F
SET_VCPU_EVENTS: Final = 0x4040AEA0
GET_DEBUGREGS: Final = 0x8080AEA1
SET_DEBUGREGS: Final = 0x4080AEA2
GET_XSAVE: Final = 0x9000AEA4
SET_XSAVE: Final = 0x5000AEA5
GET_XCRS: Final = 0x8188AEA6
SET_XCRS: Final = 0x4188AEA7


# KVM_X86_QUIRK_*: what KVM does otherwise than a processor, until KVM_CAP_DISABLE_QUIRKS2.
QUIRK_FIX_HYPERCALL_INSN = 1 << 5
QUIRK_MWAIT_NEVER_UD_FAULTS = 1 << 6
QUIRKS = QUIRK_FIX_HYPERCALL_INSN | QUIRK_MWAIT_NEVER_UD_FAULTS


class Capability(IntEnum):
    """KVM_CAP_*, those this hypervisor knows or its users ask for."""

    IRQCHIP = 0
    HLT = 1
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    SYNC_MMU = 16
    DESTROY_MEMORY_REGION_WORKS = 21
    USER_NMI = 22
    SET_GUEST_DEBUG = 23
    IRQ_ROUTING = 25
    JOIN_MEMORY_REGIONS_WORKS = 30
    MCE = 31
    SET_IDENTITY_MAP_ADDR = 37
    ADJUST_CLOCK = 39
    INTERNAL_ERROR_DATA = 40
    VCPU_EVENTS = 41
    INTR_SHADOW = 49
    DEBUGREGS = 50
    X86_ROBUST_SINGLESTEP = 51
    ENABLE_CAP = 54
    XSAVE = 55
    XCRS = 56
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    TSC_DEADLINE_TIMER = 72
    SYNC_REGS = 74
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    ENABLE_CAP_VM = 98
    CHECK_EXTENSION_VM = 105
    DISABLE_QUIRKS = 116
    X86_SMM = 117
    MULTI_ADDRESS_SPACE = 118
    SPLIT_IRQCHIP = 121
    MAX_VCPU_ID = 128
    IMMEDIATE_EXIT = 136
    X86_DISABLE_EXITS = 143
    GET_MSR_FEATURES = 153
    NESTED_STATE = 157
    EXCEPTION_PAYLOAD = 164
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189
    X86_BUS_LOCK_EXIT = 193
    SET_GUEST_DEBUG2 = 195
    SREGS2 = 200
    XSAVE2 = 208
    DISABLE_QUIRKS2 = 213
    X86_TRIPLE_FAULT_EVENT = 218
    X86_NOTIFY_VMEXIT = 219


class ExitReason(IntEnum):
    """KVM_EXIT_*, kvm_run.exit_reason."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    NMI = 16
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26
    HYPERV = 27
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    AP_RESET_HOLD = 32
    X86_BUS_LOCK = 33
    XEN = 34
    NOTIFY = 37
    MEMORY_FAULT = 39


# -- kvm_run ------------------------------------------------------------------------------------
RUN_X86_SMM: Final = 1
RUN_X86_BUS_LOCK: Final = 2
RUN_X86_GUEST_MODE: Final = 4

EXIT_IO_IN: Final = 0
EXIT_IO_OUT: Final = 1

INTERNAL_ERROR_EMULATION: Final = 1
INTERNAL_ERROR_SIMUL_EX: Final = 2
INTERNAL_ERROR_DELIVERY_EV: Final = 3
INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: Final = 4

SYNC_X86_REGS: Final = 1
SYNC_X86_SREGS: Final = 2
SYNC_X86_EVENTS: Final = 4

# -- KVM_SET_USER_MEMORY_REGION -----------------------------------------------------------------
MEM_LOG_DIRTY_PAGES: Final = 1
MEM_READONLY: Final = 2

# -- KVM_SET_GUEST_DEBUG ------------------------------------------------------------------------
GUESTDBG_ENABLE: Final = 0x1
GUESTDBG_SINGLESTEP: Final = 0x2
GUESTDBG_USE_SW_BP: Final = 0x10000
GUESTDBG_USE_HW_BP: Final = 0x20000
GUESTDBG_INJECT_DB: Final = 0x40000
GUESTDBG_INJECT_BP: Final = 0x80000
GUESTDBG_BLOCKIRQ: Final = 0x100000
GUESTDBG_VALID_MASK: Final = 0x1F0003

# -- KVM_GET/SET_VCPU_EVENTS --------------------------------------------------------------------
VCPUEVENT_VALID_NMI_PENDING: Final = 0x01
VCPUEVENT_VALID_SIPI_VECTOR: Final = 0x02
VCPUEVENT_VALID_SHADOW: Final = 0x04
VCPUEVENT_VALID_SMM: Final = 0x08
VCPUEVENT_VALID_PAYLOAD: Final = 0x10
VCPUEVENT_VALID_TRIPLE_FAULT: Final = 0x20
SHADOW_INT_MOV_SS: Final = 1
SHADOW_INT_STI: Final = 2

# -- KVM_ENABLE_CAP -----------------------------------------------------------------------------
BUS_LOCK_DETECTION_OFF: Final = 1
BUS_LOCK_DETECTION_EXIT: Final = 2

CPUID_FLAG_SIGNIFICANT_INDEX: Final = 1


class MpState(IntEnum):
    """KVM_MP_STATE_*."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4
