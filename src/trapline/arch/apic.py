"""The local APIC as the manuals define it: register offsets, and the bits of what is in them.

SDM 3A, "Advanced Programmable Interrupt Controller (APIC)"; offsets are those of the memory page,
an x2APIC MSR is 0x800 + offset / 16.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

DEFAULT_BASE: Final = 0xFEE00000
PAGE_SIZE: Final = 0x1000
VERSION: Final = 0x14
FIRST_VECTOR: Final = 16  # lower ones are illegal in a message

ID: Final = 0x20
LVR: Final = 0x30
TPR: Final = 0x80
APR: Final = 0x90
PPR: Final = 0xA0
EOI: Final = 0xB0
LDR: Final = 0xD0
DFR: Final = 0xE0
SVR: Final = 0xF0
ISR: Final = 0x100  # eight registers of 32 bits
TMR: Final = 0x180
IRR: Final = 0x200
ESR: Final = 0x280
ICR: Final = 0x300
ICR_HIGH: Final = 0x310
LVT_TIMER: Final = 0x320
LVT_THERMAL: Final = 0x330
LVT_PERFORMANCE: Final = 0x340
LVT_LINT0: Final = 0x350
LVT_LINT1: Final = 0x360
LVT_ERROR: Final = 0x370
INITIAL_COUNT: Final = 0x380
CURRENT_COUNT: Final = 0x390
DIVIDE: Final = 0x3E0
SELF_IPI: Final = 0x3F0

LVTS: Final = (
    LVT_TIMER, LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT0, LVT_LINT1, LVT_ERROR,
)  # fmt: skip
"""The local vector table; the version register tells how many there are."""

SVR_ENABLED: Final = 1 << 8
SVR_RESET: Final = 0xFF
SVR_WRITABLE: Final = 0x3FF

LVT_VECTOR: Final = 0xFF
LVT_MODE: Final = 7 << 8
LVT_MODE_SHIFT: Final = 8
LVT_STATUS: Final = 1 << 12  # read-only
LVT_POLARITY: Final = 1 << 13
LVT_REMOTE_IRR: Final = 1 << 14  # read-only, LINT0's and LINT1's
LVT_LEVEL: Final = 1 << 15
LVT_MASKED: Final = 1 << 16
LVT_TIMER_MODE_SHIFT: Final = 17
LVT_WRITABLE: Final = {
    LVT_TIMER: LVT_VECTOR | LVT_MASKED,  # and the timer mode, by feature
    LVT_THERMAL: LVT_VECTOR | LVT_MODE | LVT_MASKED,
    LVT_PERFORMANCE: LVT_VECTOR | LVT_MODE | LVT_MASKED,
    LVT_LINT0: LVT_VECTOR | LVT_MODE | LVT_POLARITY | LVT_LEVEL | LVT_MASKED,
    LVT_LINT1: LVT_VECTOR | LVT_MODE | LVT_POLARITY | LVT_LEVEL | LVT_MASKED,
    LVT_ERROR: LVT_VECTOR | LVT_MASKED,
}

DFR_FLAT: Final = 0xF
DFR_CLUSTER: Final = 0

ESR_SEND_ILLEGAL_VECTOR: Final = 1 << 5
ESR_RECEIVE_ILLEGAL_VECTOR: Final = 1 << 6
ESR_ILLEGAL_REGISTER: Final = 1 << 7

ICR_LOGICAL: Final = 1 << 11
ICR_BUSY: Final = 1 << 12
ICR_ASSERT: Final = 1 << 14
ICR_LEVEL: Final = 1 << 15
ICR_SHORTHAND_SHIFT: Final = 18
ICR_RESERVED: Final = 0xFFF << 20 | 3 << 16 | 1 << 13  # in x2APIC mode

BROADCAST_XAPIC: Final = 0xFF
BROADCAST_X2APIC: Final = 0xFFFFFFFF

MSI_LOGICAL: Final = 1 << 2
MSI_REDIRECTION_HINT: Final = 1 << 3
MSI_DESTINATION_SHIFT: Final = 12


class Delivery(IntEnum):
    """Delivery modes, of messages and of the local vector table."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


class Shorthand(IntEnum):
    """The interrupt command's destination, where it is not in the destination field."""

    NONE = 0
    SELF = 1
    ALL = 2
    OTHERS = 3


class TimerMode(IntEnum):
    """LVT timer register, bits 18:17."""

    ONE_SHOT = 0
    PERIODIC = 1
    TSC_DEADLINE = 2


def divisor(divide: int) -> int:
    """What the divide configuration register divides the timer's clock by."""
    return 1 << ((divide & 3 | divide >> 1 & 4) + 1 & 7)


def logical_x2apic_id(apic_id: int) -> int:
    """The logical destination register in x2APIC mode: cluster, and the place in it."""
    return (apic_id >> 4) << 16 | 1 << (apic_id & 15)
