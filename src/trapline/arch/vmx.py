"""VMX: control bits, exit reasons, event information, VM-instruction errors, capability values.

The fields that hold these are in `vmcs`; what they make the processor do is the processor's.
"""

from __future__ import annotations

from enum import IntEnum

from trapline.arch.bits import Bits, bit, field

# Pin-based controls.
PIN_EXTERNAL_INTERRUPT = 1 << 0
PIN_NMI = 1 << 3
PIN_VIRTUAL_NMIS = 1 << 5
PIN_PREEMPTION_TIMER = 1 << 6
PIN_POSTED_INTERRUPTS = 1 << 7

# Primary processor-based controls.
PROC_INTERRUPT_WINDOW = 1 << 2
PROC_TSC_OFFSETTING = 1 << 3
PROC_HLT = 1 << 7
PROC_INVLPG = 1 << 9
PROC_MWAIT = 1 << 10
PROC_RDPMC = 1 << 11
PROC_RDTSC = 1 << 12
PROC_CR3_LOAD = 1 << 15
PROC_CR3_STORE = 1 << 16
PROC_TERTIARY = 1 << 17
PROC_CR8_LOAD = 1 << 19
PROC_CR8_STORE = 1 << 20
PROC_TPR_SHADOW = 1 << 21
PROC_NMI_WINDOW = 1 << 22
PROC_MOV_DR = 1 << 23
PROC_UNCONDITIONAL_IO = 1 << 24
PROC_IO_BITMAPS = 1 << 25
PROC_MONITOR_TRAP_FLAG = 1 << 27
PROC_MSR_BITMAPS = 1 << 28
PROC_MONITOR = 1 << 29
PROC_PAUSE = 1 << 30
PROC_SECONDARY = 1 << 31

# Secondary processor-based controls.
PROC2_VIRTUALIZE_APIC_ACCESSES = 1 << 0
PROC2_EPT = 1 << 1
PROC2_DESCRIPTOR_TABLE = 1 << 2
PROC2_RDTSCP = 1 << 3
PROC2_VIRTUALIZE_X2APIC = 1 << 4
PROC2_VPID = 1 << 5
PROC2_WBINVD = 1 << 6
PROC2_UNRESTRICTED_GUEST = 1 << 7
PROC2_APIC_REGISTER_VIRTUALIZATION = 1 << 8
PROC2_VIRTUAL_INTERRUPT_DELIVERY = 1 << 9
PROC2_PAUSE_LOOP = 1 << 10
PROC2_RDRAND = 1 << 11
PROC2_INVPCID = 1 << 12
PROC2_VM_FUNCTIONS = 1 << 13
PROC2_SHADOW_VMCS = 1 << 14
PROC2_ENCLS = 1 << 15
PROC2_RDSEED = 1 << 16
PROC2_PML = 1 << 17
PROC2_EPT_VIOLATION_VE = 1 << 18
PROC2_CONCEAL_FROM_PT = 1 << 19
PROC2_XSAVES = 1 << 20
PROC2_MODE_BASED_EPT_EXECUTE = 1 << 22
PROC2_SUB_PAGE_WRITE = 1 << 23
PROC2_PT_USES_GPA = 1 << 24
PROC2_TSC_SCALING = 1 << 25
PROC2_USER_WAIT_PAUSE = 1 << 26
PROC2_PCONFIG = 1 << 27
PROC2_ENCLV = 1 << 28
PROC2_BUS_LOCK_DETECTION = 1 << 30
PROC2_NOTIFY = 1 << 31

# VM-exit controls.
EXIT_SAVE_DEBUG_CONTROLS = 1 << 2
EXIT_HOST_64 = 1 << 9
EXIT_LOAD_PERF_GLOBAL_CTRL = 1 << 12
EXIT_ACKNOWLEDGE_INTERRUPT = 1 << 15
EXIT_SAVE_PAT = 1 << 18
EXIT_LOAD_PAT = 1 << 19
EXIT_SAVE_EFER = 1 << 20
EXIT_LOAD_EFER = 1 << 21
EXIT_SAVE_PREEMPTION_TIMER = 1 << 22
EXIT_CLEAR_BNDCFGS = 1 << 23
EXIT_CONCEAL_FROM_PT = 1 << 24
EXIT_CLEAR_RTIT_CTL = 1 << 25
EXIT_CLEAR_LBR_CTL = 1 << 26
EXIT_CLEAR_UINV = 1 << 27
EXIT_LOAD_CET = 1 << 28
EXIT_LOAD_PKRS = 1 << 29
EXIT_SAVE_PERF_GLOBAL_CTRL = 1 << 30
EXIT_SECONDARY = 1 << 31

# VM-entry controls.
ENTRY_LOAD_DEBUG_CONTROLS = 1 << 2
ENTRY_IA32E_GUEST = 1 << 9
ENTRY_TO_SMM = 1 << 10
ENTRY_DEACTIVATE_DUAL_MONITOR = 1 << 11
ENTRY_LOAD_PERF_GLOBAL_CTRL = 1 << 13
ENTRY_LOAD_PAT = 1 << 14
ENTRY_LOAD_EFER = 1 << 15
ENTRY_LOAD_BNDCFGS = 1 << 16
ENTRY_CONCEAL_FROM_PT = 1 << 17
ENTRY_LOAD_RTIT_CTL = 1 << 18
ENTRY_LOAD_UINV = 1 << 19
ENTRY_LOAD_CET = 1 << 20
ENTRY_LOAD_LBR_CTL = 1 << 21
ENTRY_LOAD_PKRS = 1 << 22
ENTRY_LOAD_FRED = 1 << 23
ENTRY_LOAD_SPEC_CTRL = 1 << 24

# Bits that must be 1 according to the capability MSRs without TRUE (SDM 3D, "VMX Capability
# Reporting Facility"), and those that the TRUE MSRs release.
PIN_DEFAULT1 = 0x00000016
PROC_DEFAULT1 = 0x0401E172
EXIT_DEFAULT1 = 0x00036DFF
ENTRY_DEFAULT1 = 0x000011FF
PROC_TRUE_DEFAULT1 = PROC_DEFAULT1 & ~(PROC_CR3_LOAD | PROC_CR3_STORE)
EXIT_TRUE_DEFAULT1 = EXIT_DEFAULT1 & ~EXIT_SAVE_DEBUG_CONTROLS
ENTRY_TRUE_DEFAULT1 = ENTRY_DEFAULT1 & ~ENTRY_LOAD_DEBUG_CONTROLS

BASIC_REGION_SIZE_SHIFT = 32
BASIC_MEMORY_TYPE_SHIFT = 50
BASIC_INS_OUTS = 1 << 54
BASIC_TRUE_CONTROLS = 1 << 55
MISC_EFER_LMA_TO_ENTRY = 1 << 5
MISC_ACTIVITY_HLT = 1 << 6
MISC_ACTIVITY_SHUTDOWN = 1 << 7
MISC_ACTIVITY_WAIT_SIPI = 1 << 8
MISC_CR3_TARGETS_SHIFT = 16
MISC_VMWRITE_ANY_FIELD = 1 << 29
MISC_ZERO_LENGTH_INJECTION = 1 << 30

EPT_CAP_EXECUTE_ONLY = 1 << 0
EPT_CAP_WALK_4 = 1 << 6
EPT_CAP_WALK_5 = 1 << 7
EPT_CAP_UC = 1 << 8
EPT_CAP_WB = 1 << 14
EPT_CAP_2M = 1 << 16
EPT_CAP_1G = 1 << 17
EPT_CAP_INVEPT = 1 << 20
EPT_CAP_ACCESSED_DIRTY = 1 << 21
EPT_CAP_INVEPT_SINGLE = 1 << 25
EPT_CAP_INVEPT_ALL = 1 << 26
EPT_CAP_INVVPID = 1 << 32
EPT_CAP_INVVPID_ADDRESS = 1 << 40
EPT_CAP_INVVPID_SINGLE = 1 << 41
EPT_CAP_INVVPID_ALL = 1 << 42
EPT_CAP_INVVPID_KEEP_GLOBALS = 1 << 43

EPTP_TYPE = 7
EPTP_WALK_SHIFT = 3  # holds the number of levels minus one
EPTP_ACCESSED_DIRTY = 1 << 6

LINK_POINTER_NONE = (1 << 64) - 1


class ExitReason(IntEnum):
    """Basic exit reasons: bits 15:0 of the exit-reason field."""

    EXCEPTION_OR_NMI = 0
    EXTERNAL_INTERRUPT = 1
    TRIPLE_FAULT = 2
    INIT = 3
    SIPI = 4
    IO_SMI = 5
    OTHER_SMI = 6
    INTERRUPT_WINDOW = 7
    NMI_WINDOW = 8
    TASK_SWITCH = 9
    CPUID = 10
    GETSEC = 11
    HLT = 12
    INVD = 13
    INVLPG = 14
    RDPMC = 15
    RDTSC = 16
    RSM = 17
    VMCALL = 18
    VMCLEAR = 19
    VMLAUNCH = 20
    VMPTRLD = 21
    VMPTRST = 22
    VMREAD = 23
    VMRESUME = 24
    VMWRITE = 25
    VMXOFF = 26
    VMXON = 27
    CR_ACCESS = 28
    MOV_DR = 29
    IO_INSTRUCTION = 30
    RDMSR = 31
    WRMSR = 32
    INVALID_GUEST_STATE = 33
    MSR_LOAD_FAILURE = 34
    MWAIT = 36
    MONITOR_TRAP_FLAG = 37
    MONITOR = 39
    PAUSE = 40
    ENTRY_MACHINE_CHECK = 41
    TPR_BELOW_THRESHOLD = 43
    APIC_ACCESS = 44
    VIRTUALIZED_EOI = 45
    GDTR_IDTR = 46
    LDTR_TR = 47
    EPT_VIOLATION = 48
    EPT_MISCONFIGURATION = 49
    INVEPT = 50
    RDTSCP = 51
    PREEMPTION_TIMER = 52
    INVVPID = 53
    WBINVD = 54
    XSETBV = 55
    APIC_WRITE = 56
    RDRAND = 57
    INVPCID = 58
    VMFUNC = 59
    ENCLS = 60
    RDSEED = 61
    PML_FULL = 62
    XSAVES = 63
    XRSTORS = 64
    PCONFIG = 65
    SPP = 66
    UMWAIT = 67
    TPAUSE = 68
    LOADIWKEY = 69
    ENCLV = 70
    ENQCMD_PASID = 72
    ENQCMDS_PASID = 73
    BUS_LOCK = 74
    NOTIFY = 75
    SEAMCALL = 76
    TDCALL = 77
    RDMSRLIST = 78
    WRMSRLIST = 79
    URDMSR = 80
    UWRMSR = 81
    RDMSR_IMMEDIATE = 84
    WRMSRNS = 85


REASON_BASIC = 0xFFFF
REASON_SHADOW_STACK_BUSY = 1 << 25
REASON_BUS_LOCK = 1 << 26  # a bus lock coincided with this exit
REASON_ENCLAVE_MODE = 1 << 27
REASON_PENDING_MTF = 1 << 28
REASON_FROM_ROOT = 1 << 29
REASON_ENTRY_FAILURE = 1 << 31


class EventType(IntEnum):
    """Bits 10:8 of interruption information."""

    EXTERNAL_INTERRUPT = 0
    NMI = 2
    HARDWARE_EXCEPTION = 3
    SOFTWARE_INTERRUPT = 4
    PRIVILEGED_SOFTWARE_EXCEPTION = 5  # ICEBP
    SOFTWARE_EXCEPTION = 6  # INT3, INTO
    OTHER = 7  # pending MTF, with vector 0


EVENT_VECTOR = 0xFF
EVENT_TYPE_SHIFT = 8
EVENT_TYPE = 7 << EVENT_TYPE_SHIFT
EVENT_ERROR_CODE = 1 << 11
EVENT_NMI_UNBLOCKED = 1 << 12  # on exit only
EVENT_VALID = 1 << 31
EVENT_RESERVED = 0x7FFFF000  # on entry


class EventInformation(Bits, width=32):
    """Interruption information of an exit or entry, and IDT-vectoring information."""

    vector = field(7, 0)
    type = field(10, 8)
    error_code_valid = bit(11)
    nmi_unblocked = bit(12)
    valid = bit(31)


def event(vector: int, type: EventType, has_error_code: bool = False) -> int:
    """Interruption information for this event, marked valid."""
    return EVENT_VALID | (EVENT_ERROR_CODE if has_error_code else 0) | type << 8 | vector


INTERRUPTIBILITY_STI = 1 << 0
INTERRUPTIBILITY_MOV_SS = 1 << 1
INTERRUPTIBILITY_SMI = 1 << 2
INTERRUPTIBILITY_NMI = 1 << 3
INTERRUPTIBILITY_ENCLAVE = 1 << 4


class Activity(IntEnum):
    """The activity-state field."""

    ACTIVE = 0
    HLT = 1
    SHUTDOWN = 2
    WAIT_FOR_SIPI = 3


class InstructionError(IntEnum):
    """VM-instruction errors, as VMfailValid leaves them in the VMCS."""

    VMCALL_IN_ROOT = 1
    VMCLEAR_INVALID_ADDRESS = 2
    VMCLEAR_VMXON_POINTER = 3
    VMLAUNCH_NOT_CLEAR = 4
    VMRESUME_NOT_LAUNCHED = 5
    VMRESUME_AFTER_VMXOFF = 6
    ENTRY_INVALID_CONTROL = 7
    ENTRY_INVALID_HOST_STATE = 8
    VMPTRLD_INVALID_ADDRESS = 9
    VMPTRLD_VMXON_POINTER = 10
    VMPTRLD_WRONG_REVISION = 11
    UNSUPPORTED_COMPONENT = 12
    READ_ONLY_COMPONENT = 13
    VMXON_IN_ROOT = 15
    INVALID_EXECUTIVE_POINTER = 16
    EXECUTIVE_NOT_LAUNCHED = 17
    EXECUTIVE_NOT_VMXON_POINTER = 18
    VMCALL_NOT_CLEAR = 19
    VMCALL_INVALID_EXIT_CONTROLS = 20
    VMCALL_WRONG_MSEG_REVISION = 22
    VMXOFF_DUAL_MONITOR = 23
    VMCALL_INVALID_SMM_FEATURES = 24
    ENTRY_INVALID_EXECUTIVE_CONTROLS = 25
    ENTRY_BLOCKED_BY_MOV_SS = 26
    INVALID_OPERAND = 28  # of INVEPT or INVVPID


class EntryFailure(IntEnum):
    """Exit qualifications of exit 33."""

    DEFAULT = 0
    PDPTE = 2
    NMI_INJECTION = 3
    LINK_POINTER = 4


class EptViolation(Bits, width=64):
    """Exit qualification of an EPT violation."""

    read = bit(0)
    write = bit(1)
    fetch = bit(2)
    readable = bit(3)
    writable = bit(4)
    executable = bit(5)
    linear_valid = bit(7)
    is_translation = bit(8)  # 0: an access to a paging-structure entry
    nmi_unblocked = bit(12)


class IoQualification(Bits, width=64):
    """Exit qualification of an I/O instruction."""

    size_minus_one = field(2, 0)
    is_in = bit(3)
    is_string = bit(4)
    is_rep = bit(5)
    is_immediate = bit(6)
    port = field(31, 16)


class MovDrQualification(Bits, width=64):
    """Exit qualification of MOV DR."""

    number = field(2, 0)
    is_from_dr = bit(4)
    gpr = field(11, 8)


class CrQualification(Bits, width=64):
    """Exit qualification of a control-register access."""

    number = field(3, 0)
    access = field(5, 4)  # 0 MOV to CR, 1 MOV from CR, 2 CLTS, 3 LMSW
    is_memory = bit(6)  # of LMSW
    gpr = field(11, 8)
    lmsw_source = field(31, 16)
