"""Guests in every mode of the processor: descriptor tables, page tables, handlers, in one image.

The memory below 2 MiB is mapped to itself.  A page of DATA has its memory type by its number.
Handlers stop with HLT and go back with IRET; that of #DB leaves DR6 in EBX first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from trapline.arch import descriptor as d
from trapline.arch import paging, registers
from trapline.kvm import Dtable, Segment, Sregs

SIZE = 2 << 20
TABLES, TASK, GDT, IDT = 0x1000, 0x6000, 0x6800, 0x7000
HANDLERS, CODE, KERNEL_STACK, USER_STACK, DATA = 0x9000, 0x10000, 0x20000, 0x30000, 0x40000
EVERY_PAGE = range(0, SIZE, 0x1000)
STACK_TOP = 0x8000  # above the stack segments' bases
VECTORS = 32
HANDLER_CS, HANDLER_SS, GUEST_CS, GUEST_SS, TR, DATA_SELECTOR = 0x08, 0x10, 0x18, 0x20, 0x28, 0x38
WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})

# Pages of DATA: 0, 1 and 13 are plain, 14 is absent, 8 to 11 are there for MTRRs.
PAT = 0x07_07_05_01_00_07_04_06  # WB WT UC- UC WC WP UC- UC-
PAGE_TYPES = {2: 3, 3: 4, 4: 1, 5: 5, 6: 2}  # page of DATA: entry of the PAT
ABSENT_PAGE = 14
MTRR_PAGES = {8: 0, 9: 1, 10: 4, 11: 5}  # page of DATA: MTRR type

_PRESENT = paging.PTE_P | paging.PTE_W | paging.PTE_U
_MOV_EBX_DR6, _HLT = b"\x0f\x21\xf3", b"\xf4"
_CR0 = registers.CR0_PE | registers.CR0_ET | registers.CR0_NE
_FLAT = 0xFFFFFFFF


@dataclass(frozen=True)
class Mode:
    """How a guest runs.  `bits` is its code's size, `gate_bits` that of its handlers'."""

    name: str
    cpls: tuple[int, ...]
    bits: int
    gate_bits: int
    paging: str = ""
    is_real: bool = False
    is_virtual: bool = False

    @property
    def is_segmented(self) -> bool:
        """Code, data and stack in segments of 64 KiB, not flat."""
        return self.bits == 16

    @property
    def is_long(self) -> bool:
        return self.paging in ("4-level", "5-level")

    @property
    def code_offset(self) -> int:
        return 0 if self.is_segmented else CODE

    @property
    def data_offset(self) -> int:
        return 0 if self.is_segmented else DATA

    @property
    def frame_base(self) -> int:
        """The linear address that a handler's stack pointer counts from."""
        return KERNEL_STACK if self.gate_bits == 16 else 0


MODES = {
    mode.name: mode
    for mode in (
        Mode("real", (0,), 16, 16, is_real=True),
        Mode("virtual-8086", (3,), 16, 32, is_virtual=True),
        Mode("virtual-8086 paged", (3,), 16, 32, "32-bit", is_virtual=True),
        Mode("protected 16", (0, 3), 16, 16),
        Mode("protected 32", (0, 1, 2, 3), 32, 32),
        Mode("paged 32", (0, 3), 32, 32, "32-bit"),
        Mode("PAE", (0, 3), 32, 32, "PAE"),
        Mode("compatibility", (0, 3), 32, 64, "4-level"),
        Mode("compatibility 16", (3,), 16, 64, "4-level"),
        Mode("long", (0, 3), 64, 64, "4-level"),
        Mode("long 5-level", (0, 3), 64, 64, "5-level"),
    )
}


def image(mode: Mode, cpl: int) -> bytearray:
    """The guest's memory, but for its code and data."""
    memory = bytearray(SIZE)
    _write_handlers(memory, mode)
    _write_task(memory, mode)
    words = [0, *_descriptors(mode, cpl), *d.build_system_segment(TASK, 0x67, d.AR_TSS_BUSY)]
    struct.pack_into(f"<{len(words)}Q", memory, GDT, *words)
    _write_page_tables(memory, mode)
    return memory


def start(mode: Mode, cpl: int, sregs: Sregs) -> Sregs:
    """The system registers of the guest, its APIC base left as it is."""
    names = ("ds", "es", "fs", "gs", "ss")
    for name in ("cs", *names):
        setattr(sregs, name, _segment(mode, cpl, name))
    sregs.tr = Segment.from_attributes(TR, TASK, 0x67, d.AR_TSS_BUSY)
    sregs.ldt = Segment.from_attributes(0, 0, 0, d.AR_UNUSABLE)
    sregs.gdt = Dtable(GDT, 0x37)
    sregs.idt = Dtable(0, 0x3FF) if mode.is_real else Dtable(IDT, 16 * VECTORS - 1)
    sregs.cr0 = registers.CR0_ET | registers.CR0_NE if mode.is_real else _CR0
    sregs.cr3, sregs.cr4, sregs.efer = 0, registers.CR4_OSFXSR, 0
    if mode.paging:
        sregs.cr0 |= registers.CR0_PG | registers.CR0_WP
        sregs.cr3 = TABLES
    if mode.paging and mode.paging != "32-bit":
        sregs.cr4 |= registers.CR4_PAE
    if mode.paging == "5-level":
        sregs.cr4 |= registers.CR4_LA57
    if mode.is_long:
        sregs.efer = registers.EFER_LME | registers.EFER_LMA | registers.EFER_NXE
    return sregs


def stack_pointer(mode: Mode, cpl: int) -> int:
    if mode.is_segmented:
        return STACK_TOP
    return (USER_STACK if cpl else KERNEL_STACK) + STACK_TOP


def stack_selector(mode: Mode, cpl: int) -> int:
    """What SS holds, for a guest that loads it again."""
    return _segment(mode, cpl, "ss").selector


def handler_of(rip: int) -> int | None:
    """The vector whose handler holds this address."""
    number = rip - HANDLERS >> 4
    return number if 0 <= number < VECTORS else None


# -- segments ------------------------------------------------------------------------------------


def _code_rights(bits: int) -> int:
    return {16: d.AR_CODE16, 32: d.AR_CODE32, 64: d.AR_CODE64}[bits]


def _data_rights(bits: int) -> int:
    return d.AR_DATA16 if bits == 16 else d.AR_DATA32


def _base_and_limit(mode: Mode, cpl: int, name: str) -> tuple[int, int]:
    if not mode.is_segmented:
        return 0, _FLAT
    stack = USER_STACK if cpl and not mode.is_virtual else KERNEL_STACK
    stack = USER_STACK if mode.is_virtual else stack
    return {"cs": CODE, "ss": stack}.get(name, DATA), 0xFFFF


def _segment(mode: Mode, cpl: int, name: str) -> Segment:
    base, limit = _base_and_limit(mode, cpl, name)
    rights = _code_rights(mode.bits) if name == "cs" else _data_rights(mode.bits)
    if mode.is_virtual:
        return Segment.from_attributes(base >> 4, base, limit, d.AR_VIRTUAL_8086)
    if mode.is_real:
        return Segment.from_attributes(base >> 4, base, limit, rights)
    selector = {"cs": GUEST_CS, "ss": GUEST_SS}.get(name, DATA_SELECTOR) | cpl
    return Segment.from_attributes(selector, base, limit, d.with_dpl(rights, cpl))


def _descriptors(mode: Mode, cpl: int) -> list[int]:
    """The handlers' code and stack, the guest's code and stack."""
    stack = KERNEL_STACK if mode.gate_bits == 16 else 0
    limit = 0xFFFF if mode.gate_bits == 16 else _FLAT
    code, data = _code_rights(mode.gate_bits), _data_rights(mode.gate_bits)
    found = [d.build_segment(0, limit, code), d.build_segment(stack, limit, data)]
    for name in ("cs", "ss"):
        base, limit = _base_and_limit(mode, cpl, name)
        rights = _code_rights(mode.bits) if name == "cs" else _data_rights(mode.bits)
        found.append(d.build_segment(base, limit, d.with_dpl(rights, cpl)))
    return found


def _write_task(memory: bytearray, mode: Mode) -> None:
    """The stacks of rings 0 to 2: RSP0 in long mode, else ESP and SS."""
    top = STACK_TOP if mode.gate_bits == 16 else KERNEL_STACK + STACK_TOP
    if mode.is_long:
        struct.pack_into("<Q", memory, TASK + d.TSS_RSP0, top)
    else:
        struct.pack_into("<2I", memory, TASK + 4, top, HANDLER_SS)
    struct.pack_into("<H", memory, TASK + d.TSS_IO_MAP_BASE, 0x68)


# -- handlers ------------------------------------------------------------------------------------


def _write_handlers(memory: bytearray, mode: Mode) -> None:
    back = b"\x48\xcf" if mode.gate_bits == 64 else b"\xcf"
    kind = d.SystemType.INTERRUPT_GATE16 if mode.gate_bits == 16 else d.SystemType.INTERRUPT_GATE
    for vector in range(VECTORS):
        at = HANDLERS + 16 * vector
        code = (_MOV_EBX_DR6 if vector == 1 else b"") + _HLT + back
        memory[at : at + len(code)] = code
        if mode.is_real:
            struct.pack_into("<2H", memory, 4 * vector, at, 0)
            continue
        gate = d.build_gate(d.Gate(HANDLER_CS, at, kind, 0, True))
        if mode.is_long:
            struct.pack_into("<2Q", memory, IDT + 16 * vector, *gate)
        else:
            struct.pack_into("<Q", memory, IDT + 8 * vector, gate[0])


# -- paging --------------------------------------------------------------------------------------


def _write_page_tables(memory: bytearray, mode: Mode) -> None:
    if not mode.paging:
        return
    is_32 = mode.paging == "32-bit"
    levels = {"32-bit": 2, "PAE": 3, "4-level": 4, "5-level": 5}[mode.paging]
    entry = "<I" if is_32 else "<Q"
    for level in range(levels - 1):  # each table's first entry leads to the next
        is_pdpte = mode.paging == "PAE" and not level
        flags = paging.PTE_P if is_pdpte else _PRESENT
        struct.pack_into(
            entry, memory, TABLES + 0x1000 * level, TABLES + 0x1000 * (level + 1) | flags
        )
    last, size = TABLES + 0x1000 * (levels - 1), struct.calcsize(entry)
    for page in EVERY_PAGE:
        word = page | _PRESENT
        number = page - DATA >> 12
        index = PAGE_TYPES.get(number, 0)
        word |= (index & 3) << 3 | (index >> 2) << 7
        if number == ABSENT_PAGE:
            word = 0
        struct.pack_into(entry, memory, last + size * (page >> 12), word)
