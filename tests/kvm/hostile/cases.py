"""Hostile guests: code at CPL 0 that turns every knob, from a sound start or from a wild one.

A case is made of its number alone, so that it can be made again; it says nothing of vendors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from trapline.arch import descriptor as d
from trapline.arch import msr, registers

SIZE = 1 << 20
GDT, IDT, TSS, TASK, TABLES, HANDLER = 0x1000, 0x2000, 0x4000, 0x5000, 0x8000, 0x7000
CODE, STACK, DATA = 0x20000, 0x40000, 0x60000
TABLE_PAGES = 6
HIGHEST = 0x7F
MODES = ("real", "16", "32", "paging", "pae", "long", "compatibility")
_MSRS = (
    *(msr.IA32_EFER, msr.IA32_PAT, msr.IA32_DEBUGCTL, msr.IA32_APIC_BASE, msr.TEST_CTRL),
    *(msr.IA32_STAR, msr.IA32_LSTAR, msr.IA32_CSTAR, msr.IA32_FMASK, msr.IA32_FS_BASE),
    *(msr.IA32_GS_BASE, msr.IA32_KERNEL_GS_BASE, msr.IA32_SYSENTER_CS, msr.IA32_SYSENTER_ESP),
    *(msr.IA32_SYSENTER_EIP, msr.IA32_TSC, msr.IA32_MISC_ENABLE, msr.IA32_MTRR_DEF_TYPE),
    *(0x200, 0x201, 0x250, 0x277, 0x480, 0x48B, 0x800, 0x830, 0xC0010114, 0xC0010117, 0xCF),
)
# Instructions that take no operand; and those that take one of memory or a register.
_PLAIN = (
    "fa", "fb", "9c", "9d", "669d", "f4", "cf", "48cf", "66cf", "cb", "ca0800", "cc", "f1", "ce",
    "0f05", "0f07", "480f07", "0f34", "0f35", "0f06", "0f08", "0f09", "0f0b", "0f30", "0f32",
    "0f31", "0f33", "0fa2", "0faa", "0f01c1", "0f01d9", "0f01c8", "0f01c9", "0f01d0", "0f01d1",
    "0f01f8", "0f01f9", "0f01ca", "0f01cb", "0f01ee", "0f01ef", "0f01d8", "0f01dc", "0f01c2",
    "ec", "ed", "ee", "ef", "6c", "6d", "6e", "6f", "f36c", "f36f", "f3a4", "f3aa", "f3ab", "a5",
    "17", "07", "1f", "0fa1", "0fa9", "c9", "60", "61", "f390", "9b", "dbe3", "0f77", "d7",
    "0f0b6b766d0fa2", "0f0b6b766d0f22c0", "0f0b6b766d8b07",
)  # fmt: skip
_MEMORY = (
    "0f010f", "0f0117", "0f011f", "0f01", "0f013f", "0f0137", "0f0027", "0f0017", "0f001f",
    "0f000f", "ff1f", "ff2f", "ff37", "8f07", "f00fc10f", "f0010f", "870f", "0fc70f", "f00fc70f",
    "0fae07", "0fae0f", "0fae17", "8e17", "8e1f", "8e27", "0f020f", "0f030f", "0fc737", "0f7807",
    "660f38820f", "0f00c8", "8cd8", "8ed8", "8ed0", "0fb207", "c407", "0f0f", "dd27", "dd37",
)  # fmt: skip


@dataclass
class Case:
    """What a guest is before it runs."""

    number: int
    mode: str
    is_wild: bool
    """The VMM itself sets it up badly, so that its entry may be refused."""
    memory: dict[int, bytes] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)
    system: dict[str, int] = field(default_factory=dict)
    wild_segments: list[tuple[str, int, int, int, int]] = field(default_factory=list)
    msrs: list[tuple[int, int]] = field(default_factory=list)
    debug: tuple[tuple[int, int, int, int], int, int] | None = None
    guest_debug: int = 0
    events: list[tuple[str, int]] = field(default_factory=list)
    bus_lock_exits: bool = False
    has_apic: bool = False


def case(number: int, seed: int = 0) -> Case:
    source = Random(f"{seed} hostile guest {number}")
    made = Case(number, source.choice(MODES), source.random() < 0.3)
    made.memory[CODE] = _code(source, made.mode)
    made.memory[GDT] = _descriptors(source)
    made.memory[IDT] = _gates(source, made.mode)
    made.memory[TSS] = _task_state(source)
    made.memory[TASK] = source.randbytes(0x68)
    made.memory[HANDLER] = _code(source, made.mode)[:64] + b"\xcf"
    made.memory[DATA] = source.randbytes(256)
    made.memory |= _tables(source, made.mode)
    made.registers = {name: _word(source) for name in _GENERAL}
    made.registers["rsp"] = STACK if source.random() < 0.8 else _word(source)
    made.registers["rflags"] = 2 | (source.getrandbits(22) & 0x3D7FD5 if made.is_wild else 0)
    made.bus_lock_exits = source.random() < 0.3
    made.has_apic = source.random() < 0.3
    if source.random() < 0.3:
        lines = [_word(source) for _ in range(4)]
        dr7 = (
            source.getrandbits(32) if source.random() < 0.5 else 0x000F_0402 | source.getrandbits(8)
        )
        made.debug = (lines[0], lines[1], lines[2], lines[3]), source.getrandbits(32), dr7
    if source.random() < 0.2:
        made.guest_debug = 1 | source.choice((2, 0x10000, 0x20000, 0x20002, 0x100000))
    for _ in range(source.randrange(4)):
        kind = source.choice(("interrupt", "nmi", "exception"))
        made.events.append((kind, source.randrange(256)))
    if made.is_wild:
        _make_wild(source, made)
    return made


_GENERAL = ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))


def _word(source: Random) -> int:
    """What a register holds: mostly a pointer to somewhere interesting."""
    match source.randrange(9):
        case 0 | 1:
            return DATA + source.randrange(0x100)
        case 2:
            return DATA + 64 * source.randrange(8) + 62
        case 3:
            return source.choice((GDT, IDT, TSS, TABLES, CODE, STACK)) + 8 * source.randrange(16)
        case 4:
            return SIZE - source.randrange(16)  # the end of memory, and behind it
        case 5:
            return source.choice((0xFEE00000, 0xFEC00000, 0xF0000000)) + source.randrange(0x400)
        case 6:
            return -source.randrange(1, 300) & (1 << 64) - 1
        case 7:
            return source.randrange(0x100)
        case _:
            return source.getrandbits(source.choice((16, 32, 64)))


# -- code ------------------------------------------------------------------------------------------


def _code(source: Random, mode: str) -> bytes:
    if source.random() < 0.1:
        return source.randbytes(200)
    return b"".join(_gadget(source, mode) for _ in range(source.choice((4, 12, 30))))


def _gadget(source: Random, mode: str) -> bytes:
    chance = source.random()
    if chance < 0.22:
        return _special_register(source, mode, chance < 0.12)
    if chance < 0.36:
        load = _load(source, mode)
        index = source.choice(_MSRS) if source.random() < 0.9 else source.getrandbits(32)
        access = source.choice((b"\x0f\x30", b"\x0f\x30", b"\x0f\x30", b"\x0f\x32"))
        return load(0) + load(2) + _immediate(mode, 1, index) + access
    if chance < 0.46:
        return _far_branch(source, mode)
    if chance < 0.52:
        return bytes([0xCD, source.getrandbits(8)])
    if chance < 0.57:
        return source.choice((b"\xe4", b"\xe5", b"\xe6", b"\xe7")) + source.randbytes(1)
    if chance < 0.77:
        return bytes.fromhex(source.choice(_PLAIN))
    if chance < 0.95:
        return bytes.fromhex(source.choice(_MEMORY))
    return source.randbytes(source.randrange(1, 12))


def _special_register(source: Random, mode: str, is_control: bool) -> bytes:
    """MOV from and, mostly, to a control or debug register."""
    register, load = source.randrange(8), _load(source, mode)
    if is_control:
        number = source.choice((0, 0, 3, 3, 4, 4, 8, 2, 1))
        opcode = source.choice((0x20, 0x22, 0x22, 0x22))
    else:
        number, opcode = source.randrange(8), source.choice((0x21, 0x23, 0x23, 0x23))
    prefix = b"\x44" if number == 8 and mode == "long" else b""
    return load(register) + prefix + bytes([0x0F, opcode, 0xC0 | (number & 7) << 3 | register])


def _far_branch(source: Random, mode: str) -> bytes:
    sound = (8, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x40)
    selector = source.choice((*sound, source.getrandbits(16)))
    if mode == "long":  # push, push, retfq
        pushed = b"\x6a" + bytes([selector & HIGHEST]) + b"\x68" + struct.pack("<I", CODE)
        return pushed + b"\x48\xcb"
    opcode = source.choice((b"\x9a", b"\xea"))
    if mode in ("real", "16"):
        return opcode + struct.pack("<HH", CODE & 0xFFFF, selector)
    return opcode + struct.pack("<IH", CODE, selector)


def _load(source: Random, mode: str) -> Callable[[int], bytes]:
    def load(register: int) -> bytes:
        return _immediate(mode, register, _control_word(source))

    return load


def _control_word(source: Random) -> int:
    """What is likely to mean something in a control or debug register or an MSR."""
    match source.randrange(6):
        case 0:
            return source.choice((0, 0x11, 0x80000011, 0x80010033, 0x60000010, 1))
        case 1:
            return source.choice((0x20, 0x30, 0x620, 0x2020, 0x500, 0xD01, 0x901, 4, 7, 0x1800))
        case 2:
            return TABLES + 0x1000 * source.randrange(TABLE_PAGES)
        case 3:
            return _word(source)
        case 4:
            return 1 << source.randrange(64)
        case _:
            return source.getrandbits(source.choice((8, 16, 32, 64)))


def _immediate(mode: str, register: int, word: int) -> bytes:
    """MOV of a constant to a general register."""
    if mode == "long":
        return bytes([0x48, 0xB8 | register]) + struct.pack("<Q", word & (1 << 64) - 1)
    prefix = b"\x66" if mode in ("real", "16") else b""
    return prefix + bytes([0xB8 | register]) + struct.pack("<I", word & 0xFFFFFFFF)


# -- tables ----------------------------------------------------------------------------------------

SOUND = {
    0x08: d.build_segment(0, d.FLAT_LIMIT, d.AR_CODE64),
    0x10: d.build_segment(0, d.FLAT_LIMIT, d.AR_DATA32),
    0x18: d.build_segment(0, d.FLAT_LIMIT, d.AR_CODE32),
    0x20: d.build_segment(0, 0xFFFFF, d.AR_CODE16),
    0x28: d.build_segment(0, d.FLAT_LIMIT, d.with_dpl(d.AR_CODE64, 3)),
    0x30: d.build_segment(0, d.FLAT_LIMIT, d.with_dpl(d.AR_DATA32, 3)),
}


def _descriptors(source: Random) -> bytes:
    words = [SOUND.get(8 * i, 0) for i in range(16)]
    words[7], words[8] = d.build_system_segment(TSS, d.TSS_LIMIT, d.AR_TSS_BUSY)
    words[9] = d.build_segment(TASK, 0x67, 0x89)
    for i in range(10, 16):
        words[i] = source.getrandbits(64) | (1 << 47 if source.random() < 0.7 else 0)
    if source.random() < 0.3:
        words[source.randrange(1, 16)] ^= 1 << source.randrange(64)
    return struct.pack("<16Q", *words)


def _gates(source: Random, mode: str) -> bytes:
    if source.random() < 0.15:
        return source.randbytes(0x1000)
    if mode == "real":
        return struct.pack("<256I", *(HANDLER for _ in range(256)))
    selector = {"long": 8, "compatibility": 8, "16": 0x20}.get(mode, 0x18)
    gates = b""
    for _ in range(256):
        kind = source.choice((0xE, 0xE, 0xE, 0xF, 5, 6, 0xC, source.getrandbits(4)))
        if mode in ("long", "compatibility"):
            gate = d.Gate(selector, HANDLER, kind, source.choice((0, 3)), True, source.randrange(8))
            gates += struct.pack("<2Q", *d.build_gate(gate))
        else:
            high = HANDLER & 0xFFFF0000 | 0x8000 | kind << 8 | source.choice((0, 0x6000))
            low = (0x48 if kind == 5 else selector) << 16 | HANDLER & 0xFFFF
            gates += struct.pack("<2I", low, high)
    return gates


def _task_state(source: Random) -> bytes:
    area = bytearray(source.randbytes(0x68))
    for at in range(4, 0x54, 8):
        area[at : at + 8] = struct.pack("<Q", STACK)
    return bytes(area)


def _tables(source: Random, mode: str) -> dict[int, bytes]:
    """Identity-mapped by large pages; sometimes with noise in them, sometimes nothing but that."""
    pages = {}
    if mode == "paging":
        pages[TABLES] = struct.pack("<1024I", *(i << 22 | 0x87 for i in range(1024)))
    elif mode == "pae":
        pages[TABLES] = struct.pack("<4Q", *(TABLES + 0x1000 | 1 for _ in range(4)))
        pages[TABLES + 0x1000] = struct.pack("<512Q", *(i << 21 | 0x87 for i in range(512)))
    else:
        pages[TABLES] = struct.pack("<512Q", *(TABLES + 0x1000 | 7 for _ in range(512)))
        pages[TABLES + 0x1000] = struct.pack("<512Q", *(TABLES + 0x2000 | 7 for _ in range(512)))
        pages[TABLES + 0x2000] = struct.pack("<512Q", *(i << 21 | 0x87 for i in range(512)))
    noise = source.choice((0, 0, 0, 3, 40))
    for _ in range(noise):
        at = source.choice(sorted(pages))
        page = bytearray(pages[at])
        slot = 8 * source.randrange(min(64, len(page) // 8))
        entry = source.choice((source.getrandbits(64), source.getrandbits(20) | 1, TABLES | 7))
        page[slot : slot + 8] = struct.pack("<Q", entry)
        pages[at] = bytes(page)
    for i in range(3, TABLE_PAGES):
        pages[TABLES + 0x1000 * i] = source.randbytes(0x1000)
    return pages


# -- a VMM that sets its guest up badly ------------------------------------------------------------


def _make_wild(source: Random, made: Case) -> None:
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"):
        if source.random() < 0.4:
            made.system[name] = _control_word(source)
    for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"):
        if source.random() < 0.4:
            rights = source.getrandbits(17) & 0x1F0FF
            made.wild_segments.append(
                (name, source.getrandbits(16), _word(source), source.getrandbits(32), rights)
            )
    for _ in range(source.randrange(6)):
        made.msrs.append((source.choice(_MSRS), _control_word(source)))


def sound_system(mode: str) -> dict[str, int]:
    """CR0, CR3, CR4 and EFER of a mode."""
    protected = registers.CR0_PE | registers.CR0_ET | registers.CR0_NE
    paged = protected | registers.CR0_PG
    long = registers.EFER_LME | registers.EFER_LMA | registers.EFER_SCE
    return {
        "real": {"cr0": registers.CR0_ET},
        "16": {"cr0": protected},
        "32": {"cr0": protected},
        "paging": {"cr0": paged, "cr3": TABLES, "cr4": registers.CR4_PSE},
        "pae": {"cr0": paged, "cr3": TABLES, "cr4": registers.CR4_PAE},
        "long": {"cr0": paged, "cr3": TABLES, "cr4": registers.CR4_PAE | 0x600, "efer": long},
        "compatibility": {"cr0": paged, "cr3": TABLES, "cr4": registers.CR4_PAE, "efer": long},
    }[mode]
