"""What native code and Python agree on: records, exit reasons, the native TLB, the jump cache."""

from __future__ import annotations

from enum import IntEnum, IntFlag

HANDLER = "preserve_nonecc void"  # a handler is `HANDLER (ptr state, ptr record, ptr tlb)`
PARAMETERS = "(ptr %s, ptr %r, ptr %t)"
ARGUMENTS = "(ptr %s, ptr {record}, ptr %t)"

RECORD_HEAD = 2  # words: handler, rip
LINK_WORDS = 4  # words: pointer, then a stub record: handler, target rip, address of the pointer

TLB_ENTRY = 32
TLB_INDEX_MASK = 0xFFFF
TAG_READ, TAG_WRITE, TAG_LOCK, ADDEND = 0, 8, 16, 24

JUMP_CACHE_BITS = 15
JUMP_CACHE_ENTRY = 16  # rip, record


class Native(IntFlag):
    """How much of the present mode's code is the fast engine's."""

    NOTHING = 0
    INTEGERS = 1  # at least all but what follows
    UNITS = 2  # what needs the x87, MMX or SSE units
    FS_GS = 4  # accesses through FS and GS
    ALL = 7


class Exit(IntEnum):
    """Why native code returned."""

    NONE = 0
    LOOKUP = 1  # exit_rip is not in the jump cache
    LINK = 2  # exit_rip was reached through the unlinked link at next_record
    ATTENTION = 3  # exit_rip is next; somebody wants the processor
    INTERPRET = 4  # the instruction of exit_record is for the reference engine
    MEMORY = 5  # exit_linear, exit_size, exit_detail (Access) is not in the TLB
    FAULT = 6  # exit_detail: vector, error code << 8, bit 40 set when there is one
    BUS_LOCK = 7  # exit_rip is next; an instruction locked the bus and somebody must know
    PORT = 8  # IN or OUT of exit_record leaves the guest: exit_detail is VMX's exit qualification


class Access(IntEnum):
    """What a memory access needs, as exit_detail of MEMORY says it."""

    READ = 0
    WRITE = 1
    LOCK = 2
