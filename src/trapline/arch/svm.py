"""SVM: exit codes, intercept bits, event injection, and the small fields of the control area.

Where they stand in the VMCB is in `vmcb`.
"""

from __future__ import annotations

from enum import IntEnum

from trapline.arch.bits import Bits, bit, field

EXIT_INVALID = (1 << 64) - 1  # EXITCODE when VMRUN's checks fail


class ExitCode(IntEnum):
    """The EXITCODE of #VMEXIT; exceptions are EXCP_BASE + vector."""

    READ_CR0 = 0x000
    READ_CR2 = 0x002
    READ_CR3 = 0x003
    READ_CR4 = 0x004
    READ_CR8 = 0x008
    WRITE_CR0 = 0x010
    WRITE_CR2 = 0x012
    WRITE_CR3 = 0x013
    WRITE_CR4 = 0x014
    WRITE_CR8 = 0x018
    READ_DR0 = 0x020
    READ_DR1 = 0x021
    READ_DR2 = 0x022
    READ_DR3 = 0x023
    READ_DR4 = 0x024
    READ_DR5 = 0x025
    READ_DR6 = 0x026
    READ_DR7 = 0x027
    WRITE_DR0 = 0x030
    WRITE_DR1 = 0x031
    WRITE_DR2 = 0x032
    WRITE_DR3 = 0x033
    WRITE_DR4 = 0x034
    WRITE_DR5 = 0x035
    WRITE_DR6 = 0x036
    WRITE_DR7 = 0x037
    EXCP_BASE = 0x040
    LAST_EXCP = 0x05F
    INTR = 0x060
    NMI = 0x061
    SMI = 0x062
    INIT = 0x063
    VINTR = 0x064
    CR0_SEL_WRITE = 0x065
    IDTR_READ = 0x066
    GDTR_READ = 0x067
    LDTR_READ = 0x068
    TR_READ = 0x069
    IDTR_WRITE = 0x06A
    GDTR_WRITE = 0x06B
    LDTR_WRITE = 0x06C
    TR_WRITE = 0x06D
    RDTSC = 0x06E
    RDPMC = 0x06F
    PUSHF = 0x070
    POPF = 0x071
    CPUID = 0x072
    RSM = 0x073
    IRET = 0x074
    SWINT = 0x075
    INVD = 0x076
    PAUSE = 0x077
    HLT = 0x078
    INVLPG = 0x079
    INVLPGA = 0x07A
    IOIO = 0x07B
    MSR = 0x07C
    TASK_SWITCH = 0x07D
    FERR_FREEZE = 0x07E
    SHUTDOWN = 0x07F
    VMRUN = 0x080
    VMMCALL = 0x081
    VMLOAD = 0x082
    VMSAVE = 0x083
    STGI = 0x084
    CLGI = 0x085
    SKINIT = 0x086
    RDTSCP = 0x087
    ICEBP = 0x088
    WBINVD = 0x089
    MONITOR = 0x08A
    MWAIT = 0x08B
    MWAIT_COND = 0x08C
    XSETBV = 0x08D
    RDPRU = 0x08E
    EFER_WRITE_TRAP = 0x08F
    CR0_WRITE_TRAP = 0x090
    CR1_WRITE_TRAP = 0x091
    CR2_WRITE_TRAP = 0x092
    CR3_WRITE_TRAP = 0x093
    CR4_WRITE_TRAP = 0x094
    CR5_WRITE_TRAP = 0x095
    CR6_WRITE_TRAP = 0x096
    CR7_WRITE_TRAP = 0x097
    CR8_WRITE_TRAP = 0x098
    CR9_WRITE_TRAP = 0x099
    CR10_WRITE_TRAP = 0x09A
    CR11_WRITE_TRAP = 0x09B
    CR12_WRITE_TRAP = 0x09C
    CR13_WRITE_TRAP = 0x09D
    CR14_WRITE_TRAP = 0x09E
    CR15_WRITE_TRAP = 0x09F
    INVLPGB = 0x0A0
    INVLPGB_ILLEGAL = 0x0A1
    INVPCID = 0x0A2
    MCOMMIT = 0x0A3
    TLBSYNC = 0x0A4
    BUS_LOCK = 0x0A5
    IDLE_HLT = 0x0A6
    NPF = 0x400
    AVIC_INCOMPLETE_IPI = 0x401
    AVIC_UNACCELERATED_ACCESS = 0x402
    VMGEXIT = 0x403


def exception_code(vector: int) -> int:
    """The exit code of an intercepted exception."""
    return ExitCode.EXCP_BASE + vector


# Intercepts, numbered over the whole vector as Linux does: 32 * word + bit.
INTERCEPT_READ_CR = 0  # + register number
INTERCEPT_WRITE_CR = 16
INTERCEPT_READ_DR = 32
INTERCEPT_WRITE_DR = 48
INTERCEPT_EXCEPTION = 64  # + vector


class Intercept(IntEnum):
    """The intercepts of words 3 to 5."""

    INTR = 96
    NMI = 97
    SMI = 98
    INIT = 99
    VINTR = 100
    CR0_SELECTIVE = 101
    SIDT = 102
    SGDT = 103
    SLDT = 104
    STR = 105
    LIDT = 106
    LGDT = 107
    LLDT = 108
    LTR = 109
    RDTSC = 110
    RDPMC = 111
    PUSHF = 112
    POPF = 113
    CPUID = 114
    RSM = 115
    IRET = 116
    INTN = 117
    INVD = 118
    PAUSE = 119
    HLT = 120
    INVLPG = 121
    INVLPGA = 122
    IOIO = 123
    MSR = 124
    TASK_SWITCH = 125
    FERR_FREEZE = 126
    SHUTDOWN = 127
    VMRUN = 128
    VMMCALL = 129
    VMLOAD = 130
    VMSAVE = 131
    STGI = 132
    CLGI = 133
    SKINIT = 134
    RDTSCP = 135
    ICEBP = 136
    WBINVD = 137
    MONITOR = 138
    MWAIT = 139
    MWAIT_ARMED = 140
    XSETBV = 141
    RDPRU = 142
    EFER_WRITE_TRAP = 143
    INVLPGB = 160
    INVLPGB_ILLEGAL = 161
    INVPCID = 162
    MCOMMIT = 163
    TLBSYNC = 164
    BUS_LOCK = 165
    IDLE_HLT = 166


INTERCEPT_WRITE_CR_TRAP = 144  # + register number; after the write


def intercept_mask(number: int) -> int:
    """The intercept's bit in its own 32-bit word."""
    return 1 << (number % 32)


class EventType(IntEnum):
    """Bits 10:8 of EVENTINJ and EXITINTINFO."""

    INTERRUPT = 0
    NMI = 2
    EXCEPTION = 3
    SOFTWARE_INTERRUPT = 4


EVENT_ERROR_CODE = 1 << 11
EVENT_VALID = 1 << 31


class EventInformation(Bits, width=64):
    """EVENTINJ and EXITINTINFO."""

    vector = field(7, 0)
    type = field(10, 8)
    error_code_valid = bit(11)
    valid = bit(31)
    error_code = field(63, 32)


def event(vector: int, type: EventType, error_code: int | None = None) -> int:
    """EVENTINJ for this event, marked valid."""
    word = EVENT_VALID | type << 8 | vector
    return word if error_code is None else word | EVENT_ERROR_CODE | error_code << 32


INT_CTL_V_TPR = 0xFF
INT_CTL_V_IRQ = 1 << 8
INT_CTL_V_GIF = 1 << 9
INT_CTL_V_NMI = 1 << 11
INT_CTL_V_NMI_BLOCKING = 1 << 12
INT_CTL_V_INTR_PRIORITY_SHIFT = 16
INT_CTL_V_IGNORE_TPR = 1 << 20
INT_CTL_V_INTR_MASKING = 1 << 24
INT_CTL_V_GIF_ENABLE = 1 << 25
INT_CTL_V_NMI_ENABLE = 1 << 26
INT_CTL_X2AVIC = 1 << 30
INT_CTL_AVIC = 1 << 31

INT_STATE_SHADOW = 1 << 0
INT_STATE_GUEST_MASK = 1 << 1

NESTED_CTL_NP = 1 << 0
NESTED_CTL_SEV = 1 << 1
NESTED_CTL_SEV_ES = 1 << 2

VIRT_EXT_LBR = 1 << 0
VIRT_EXT_VMLOAD_VMSAVE = 1 << 1


class TlbControl(IntEnum):
    """The TLB_CONTROL byte."""

    NOTHING = 0
    FLUSH_ALL = 1
    FLUSH_ASID = 3
    FLUSH_ASID_NON_GLOBAL = 7


CLEAN_INTERCEPTS = 1 << 0
CLEAN_PERMISSION_MAPS = 1 << 1
CLEAN_ASID = 1 << 2
CLEAN_INTERRUPT = 1 << 3
CLEAN_NESTED_PAGING = 1 << 4
CLEAN_CR = 1 << 5
CLEAN_DR = 1 << 6
CLEAN_DESCRIPTOR_TABLES = 1 << 7
CLEAN_SEGMENTS = 1 << 8
CLEAN_CR2 = 1 << 9
CLEAN_LBR = 1 << 10
CLEAN_AVIC = 1 << 11

IOPM_SIZE = 12 * 1024
MSRPM_SIZE = 8 * 1024
# The map holds two bits an MSR (read, write) for each of these ranges in turn.
MSRPM_RANGES = (0x00000000, 0xC0000000, 0xC0010000)
MSRPM_RANGE_LENGTH = 0x2000


def msrpm_position(number: int) -> int | None:
    """The bit of the read permission in the MSR map, the write's is next; None: not mapped."""
    for index, start in enumerate(MSRPM_RANGES):
        if start <= number < start + MSRPM_RANGE_LENGTH:
            return 2 * (index * MSRPM_RANGE_LENGTH + number - start)
    return None
