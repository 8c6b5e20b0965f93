"""Exceptions: vectors, mnemonics, classes, error codes, and what two of them in a row become.

Delivery through the IDT is the processor's.
"""

from __future__ import annotations

from enum import Enum, IntEnum


class Vector(IntEnum):
    """The exception vectors by the manual's mnemonics; vector 2 is the NMI interrupt."""

    DE = 0
    DB = 1
    NMI = 2
    BP = 3
    OF = 4
    BR = 5
    UD = 6
    NM = 7
    DF = 8
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14
    MF = 16
    AC = 17
    MC = 18
    XM = 19
    VE = 20
    CP = 21
    HV = 28
    VC = 29
    SX = 30

    @property
    def mnemonic(self) -> str:
        return "NMI" if self is Vector.NMI else f"#{self.name}"


class Kind(Enum):
    """When an exception is taken, so which RIP it saves."""

    FAULT = "fault"  # RIP is the instruction's own
    TRAP = "trap"  # RIP is the next instruction's
    ABORT = "abort"
    INTERRUPT = "interrupt"


TITLES = {
    Vector.DE: "divide error",
    Vector.DB: "debug exception",
    Vector.NMI: "non-maskable interrupt",
    Vector.BP: "breakpoint",
    Vector.OF: "overflow",
    Vector.BR: "BOUND range exceeded",
    Vector.UD: "invalid opcode",
    Vector.NM: "device not available",
    Vector.DF: "double fault",
    Vector.TS: "invalid TSS",
    Vector.NP: "segment not present",
    Vector.SS: "stack-segment fault",
    Vector.GP: "general protection",
    Vector.PF: "page fault",
    Vector.MF: "x87 floating-point error",
    Vector.AC: "alignment check",
    Vector.MC: "machine check",
    Vector.XM: "SIMD floating-point exception",
    Vector.VE: "virtualization exception",
    Vector.CP: "control protection exception",
    Vector.HV: "hypervisor injection exception",
    Vector.VC: "VMM communication exception",
    Vector.SX: "security exception",
}

_TRAPS = frozenset({Vector.BP, Vector.OF})
_ABORTS = frozenset({Vector.DF, Vector.MC})

# SDM 3A, "Exception and Interrupt Vectors"; HV has none, VC and SX are AMD's.
WITH_ERROR_CODE = frozenset(
    {
        *(Vector.DF, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.PF),
        *(Vector.AC, Vector.CP, Vector.VC, Vector.SX),
    }
)
# SDM 3A, "Interrupt 8 - Double Fault Exception (#DF)".
CONTRIBUTORY = frozenset({Vector.DE, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.CP})
_PAGE_FAULTS = frozenset({Vector.PF, Vector.VE})

PF_PRESENT = 1 << 0
PF_WRITE = 1 << 1
PF_USER = 1 << 2
PF_RESERVED = 1 << 3
PF_FETCH = 1 << 4
PF_PROTECTION_KEY = 1 << 5
PF_SHADOW_STACK = 1 << 6
PF_SGX = 1 << 15

# Error codes that name a selector; the index stands above them.
SELECTOR_EXT = 1 << 0
SELECTOR_IDT = 1 << 1
SELECTOR_TI = 1 << 2


def kind_of(vector: int) -> Kind:
    """The class of an exception; #DB is a fault or a trap by its cause and counts as a trap."""
    if vector == Vector.NMI or vector >= 32:
        return Kind.INTERRUPT
    if vector in _TRAPS or vector == Vector.DB:
        return Kind.TRAP
    return Kind.ABORT if vector in _ABORTS else Kind.FAULT


def has_error_code(vector: int) -> bool:
    return vector in WITH_ERROR_CODE


def mnemonic(vector: int) -> str:
    """`#GP` for 13; vectors without an exception are shown by number."""
    try:
        return Vector(vector).mnemonic
    except ValueError:
        return f"vector {vector}"


class Combination(Enum):
    """What an exception raised while another is being delivered leads to."""

    SERIAL = "serial"  # the second is delivered; the first comes again by itself
    DOUBLE_FAULT = "double fault"
    SHUTDOWN = "shutdown"


def combine(first: int, second: int) -> Combination:
    """The outcome when delivering exception `first` raises exception `second`."""
    severe = second in CONTRIBUTORY or second in _PAGE_FAULTS
    if first == Vector.DF:
        return Combination.SHUTDOWN if severe else Combination.SERIAL
    if first in _PAGE_FAULTS:
        return Combination.DOUBLE_FAULT if severe else Combination.SERIAL
    if first in CONTRIBUTORY and second in CONTRIBUTORY:
        return Combination.DOUBLE_FAULT
    return Combination.SERIAL
