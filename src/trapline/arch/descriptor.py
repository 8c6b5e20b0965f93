"""Segment and gate descriptors: from the eight or sixteen bytes of a table to fields, and back.

Access rights have the layout of the VMCS; the checks on loading are the processor's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from trapline.arch.bits import Bits, bit, field

AR_TYPE = 0xF
AR_S = 1 << 4  # code or data, not system
AR_DPL_SHIFT = 5
AR_DPL = 3 << AR_DPL_SHIFT
AR_P = 1 << 7
AR_AVL = 1 << 12
AR_L = 1 << 13
AR_DB = 1 << 14
AR_G = 1 << 15
AR_UNUSABLE = 1 << 16
AR_DESCRIPTOR = 0xF0FF  # the bits that a descriptor has, at its bits 55:40

TYPE_ACCESSED = 1 << 0
TYPE_WRITABLE = 1 << 1  # data
TYPE_READABLE = 1 << 1  # code
TYPE_EXPAND_DOWN = 1 << 2  # data
TYPE_CONFORMING = 1 << 2  # code
TYPE_CODE = 1 << 3

SELECTOR_RPL = 3
SELECTOR_TI = 1 << 2
SELECTOR_INDEX = 0xFFF8


class SystemType(IntEnum):
    """Types of system descriptors; in 64-bit mode only LDT, 32-bit TSS and gates remain."""

    TSS16_AVAILABLE = 1
    LDT = 2
    TSS16_BUSY = 3
    CALL_GATE16 = 4
    TASK_GATE = 5
    INTERRUPT_GATE16 = 6
    TRAP_GATE16 = 7
    TSS_AVAILABLE = 9
    TSS_BUSY = 11
    CALL_GATE = 12
    INTERRUPT_GATE = 14
    TRAP_GATE = 15


class AccessRights(Bits, width=32):
    """The access-rights word of the VMCS (SDM 3C, "Guest Register State")."""

    type = field(3, 0)
    s = bit(4)
    dpl = field(6, 5)
    p = bit(7)
    avl = bit(12)
    l = bit(13)  # noqa: E741  the manual's name
    db = bit(14)
    g = bit(15)
    unusable = bit(16)


@dataclass(frozen=True, slots=True)
class Segment:
    """What a segment register holds: limit in bytes, rights as in the VMCS."""

    selector: int = 0
    base: int = 0
    limit: int = 0
    access_rights: int = AR_UNUSABLE

    @property
    def rights(self) -> AccessRights:
        return AccessRights(self.access_rights)


@dataclass(frozen=True, slots=True)
class Gate:
    """An interrupt, trap, call or task gate."""

    selector: int
    offset: int
    type: int
    dpl: int
    is_present: bool
    interrupt_stack: int = 0  # IST of a long-mode gate


def parse_segment(low: int, high: int = 0) -> tuple[int, int, int]:
    """(base, limit in bytes, access rights) of a descriptor.

    `high` is the second quadword of a long-mode system descriptor.
    """
    base = (low >> 16 & 0xFFFFFF) | (low >> 56 & 0xFF) << 24 | (high & 0xFFFFFFFF) << 32
    limit = (low & 0xFFFF) | (low >> 48 & 0xF) << 16
    access_rights = low >> 40 & AR_DESCRIPTOR
    if access_rights & AR_G:
        limit = limit << 12 | 0xFFF
    return base, limit, access_rights


def build_segment(base: int, limit: int, access_rights: int) -> int:
    """The first quadword of a descriptor; a byte limit that G cannot express is refused."""
    if access_rights & AR_G:
        if limit & 0xFFF != 0xFFF:
            raise ValueError(f"limit {limit:#x} is not a whole number of pages")
        limit >>= 12
    if limit >> 20:
        raise ValueError(f"limit {limit:#x} does not fit 20 bits")
    return (
        limit & 0xFFFF
        | (base & 0xFFFFFF) << 16
        | (access_rights & AR_DESCRIPTOR) << 40
        | (limit >> 16) << 48
        | (base >> 24 & 0xFF) << 56
    )


def build_system_segment(base: int, limit: int, access_rights: int) -> tuple[int, int]:
    """Both quadwords of a long-mode TSS or LDT descriptor."""
    return build_segment(base & 0xFFFFFFFF, limit, access_rights), base >> 32


def parse_gate(low: int, high: int = 0) -> Gate:
    """A gate; `high` is the second quadword that long mode adds."""
    is_32 = bool(low >> 43 & 1)  # the size bit of the type; 16-bit gates have 16-bit offsets
    offset = (low & 0xFFFF) | (low >> 48 & 0xFFFF) << 16 if is_32 else low & 0xFFFF
    return Gate(
        selector=low >> 16 & 0xFFFF,
        offset=offset | (high & 0xFFFFFFFF) << 32,
        type=low >> 40 & 0xF,
        dpl=low >> 45 & 3,
        is_present=bool(low >> 47 & 1),
        interrupt_stack=low >> 32 & 7,
    )


def build_gate(gate: Gate) -> tuple[int, int]:
    """Both quadwords of a gate; outside long mode only the first is used."""
    low = (
        gate.offset & 0xFFFF
        | gate.selector << 16
        | gate.interrupt_stack << 32
        | gate.type << 40
        | gate.dpl << 45
        | int(gate.is_present) << 47
        | (gate.offset >> 16 & 0xFFFF) << 48
    )
    return low, gate.offset >> 32


# Segments as they are in long mode and flat protected mode, by their access rights.
AR_CODE64 = AR_P | AR_S | TYPE_CODE | TYPE_READABLE | TYPE_ACCESSED | AR_L | AR_G
AR_CODE32 = AR_P | AR_S | TYPE_CODE | TYPE_READABLE | TYPE_ACCESSED | AR_DB | AR_G
AR_CODE16 = AR_P | AR_S | TYPE_CODE | TYPE_READABLE | TYPE_ACCESSED
AR_DATA32 = AR_P | AR_S | TYPE_WRITABLE | TYPE_ACCESSED | AR_DB | AR_G
AR_DATA16 = AR_P | AR_S | TYPE_WRITABLE | TYPE_ACCESSED
AR_TSS_BUSY = AR_P | SystemType.TSS_BUSY
AR_LDT = AR_P | SystemType.LDT
AR_VIRTUAL_8086 = AR_DATA16 | AR_DPL
"""All six segments in virtual-8086 mode: 0xF3."""

FLAT_LIMIT = 0xFFFFFFFF


def with_dpl(access_rights: int, dpl: int) -> int:
    """The rights with another descriptor privilege level."""
    return access_rights & ~AR_DPL | dpl << AR_DPL_SHIFT


# The 64-bit TSS (SDM 3A, "Task Management in 64-bit Mode"), offsets in bytes.
TSS_RSP0 = 4
TSS_IST1 = 36
TSS_IO_MAP_BASE = 102
TSS_LIMIT = 103
