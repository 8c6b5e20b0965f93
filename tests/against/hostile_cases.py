"""Hostile cases: random bytes, odd instructions, damaged programs, and where they start from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from elftools.elf.elffile import ELFFile

from tests.against.hostile_guest import (
    CODE,
    CODE_SIZE,
    DATA,
    DATA_SIZE,
    GDT,
    KERNEL_CODE,
    READ_ONLY,
    REAL_CODE,
    SIZE,
    STACK_TOP,
    TABLES,
    USER,
    USER_STACK_TOP,
)
from tests.against.state import AC, DF, NT, TF

KINDS = ("user", "kernel", "real", "damaged")
PROGRAMS = ("/bin/ls", "/bin/sh", "/usr/bin/perl")
GENERAL = ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
IOPL = 3 << 12
# Whatever reads a clock: two engines need not agree afterwards.
CLOCKS = (b"\x0f\x31", b"\x0f\x01\xf9", b"\x0f\x32")
_EVERYTHING = (1 << 64) - 1


@dataclass
class Hostile:
    """One case: code, where it goes, and the state it starts from."""

    kind: str
    number: int
    seed: int
    code: bytes
    physical: int
    offset: int  # of the first instruction in the code
    bits: int
    registers: dict[str, int]

    @property
    def is_user(self) -> bool:
        return self.kind in ("user", "damaged")

    @property
    def reads_a_clock(self) -> bool:
        """At CPL 3 none can be read (CR4.TSD, and MSRs are privileged)."""
        return not self.is_user and any(clock in self.code for clock in CLOCKS)


def hostile(kind: str, number: int, seed: int = 0) -> Hostile:
    """The n-th case of a kind, the same each time."""
    source = Random(f"{seed} {kind} {number}")
    if kind == "damaged":
        return _damaged(source, number, seed)
    bits = 16 if kind == "real" else source.choice((64, 64, 64, 64, 32, 32, 16))
    code = _code(source, bits)
    if kind == "kernel":
        physical = KERNEL_CODE
    else:
        physical = CODE + source.choice((0, 0x123, 0xFE0, 0xFFD)) if kind == "user" else REAL_CODE
    return Hostile(
        kind, number, seed, code, physical, 0, bits, _state(source, kind, bits, physical)
    )


def _code(source: Random, bits: int) -> bytes:
    length = source.choice((16, 64, 200))
    match source.randrange(3):
        case 0:
            return source.randbytes(length)
        case 1:
            return b"".join(_odd(source, bits) for _ in range(length // 4))
        case _:
            parts = source.randbytes(3) if source.random() < 0.2 else _odd(source, bits)
            return b"".join((parts, *(_odd(source, bits) for _ in range(length // 5))))


def _odd(source: Random, bits: int) -> bytes:
    """An instruction more likely than random bytes to mean something, and something unusual."""
    prefixes = b""
    while source.random() < 0.3:
        prefixes += source.choice(
            (b"\x66", b"\x67", b"\xf0", b"\xf2", b"\xf3", b"\x2e", b"\x64", b"\x65")
        )
    if bits == 64 and source.random() < 0.4:
        prefixes += bytes([0x40 | source.getrandbits(4)])
    chance = source.random()
    if chance < 0.40:
        opcode = bytes([source.getrandbits(8)])
    elif chance < 0.80:
        opcode = bytes([0x0F, source.getrandbits(8)])
    elif chance < 0.88:
        opcode = bytes([0x0F, source.choice((0x38, 0x3A)), source.getrandbits(8)])
    elif chance < 0.94:
        opcode = bytes([0xD8 | source.getrandbits(3)])
    else:  # control and debug registers, descriptor tables, MSRs, strings, far branches
        opcode = source.choice((
            b"\x0f\x00", b"\x0f\x01", b"\x0f\x20", b"\x0f\x21", b"\x0f\x22", b"\x0f\x23",
            b"\x0f\x30", b"\x0f\xae", b"\x0f\xc7", b"\xf3\xa4", b"\xf3\xab", b"\xff", b"\xcf",
        ))  # fmt: skip
    modrm = source.getrandbits(8)
    tail = source.randbytes(source.choice((1, 1, 2, 4)))
    if source.random() < 0.5:  # small displacements and immediates
        tail = bytes([source.choice((0, 1, 4, 0xFF, 0x80))]) + bytes(source.choice((0, 3)))
    return prefixes + opcode + bytes([modrm]) + tail


@cache
def _programs() -> list[bytes]:
    texts = []
    for path in PROGRAMS:
        if Path(path).exists():
            with open(path, "rb") as file:
                section = ELFFile(file).get_section_by_name(".text")
                if section is not None:
                    texts.append(section.data()[:CODE_SIZE])
    return texts


def _damaged(source: Random, number: int, seed: int) -> Hostile:
    """A piece of a real program, some of its bits flipped near where it is entered."""
    text = bytearray(source.choice(_programs()))
    offset = source.randrange(max(1, len(text) - 4096))
    for _ in range(source.choice((0, 1, 4, 16, 64))):
        at = offset + source.randrange(min(2048, len(text) - offset))
        text[at] ^= 1 << source.randrange(8)
    registers = _state(source, "user", 64, CODE)
    return Hostile("damaged", number, seed, bytes(text), CODE, offset, 64, registers)


def _state(source: Random, kind: str, bits: int, physical: int) -> dict[str, int]:
    base = USER if kind == "user" else 0
    registers = {name: _word(source, base, bits) for name in GENERAL}
    top = USER + USER_STACK_TOP - 0x800 if kind == "user" else STACK_TOP - 0x1000
    registers["rsp"] = top if source.random() < 0.85 else _word(source, base, bits)
    registers["rflags"] = source.getrandbits(12) & 0x8D5 | 2
    for flag, chance in ((DF, 0.1), (TF, 0.04), (AC, 0.1), (NT, 0.05), (IOPL, 0.1)):
        if source.random() < chance:
            registers["rflags"] |= flag
    if source.random() < 0.1:
        registers |= {"dr0": base + DATA + 8, "dr1": base + physical + 9, "dr7": 0x000F_040A}
    if source.random() < 0.3:
        registers["debugctl"] = 1 << 2
    if source.random() < 0.1:
        registers["test_ctrl"] = 1 << 29
    if source.random() < 0.2:
        registers["mxcsr"] = source.getrandbits(16)
    if source.random() < 0.2:
        registers["fcw"] = source.getrandbits(16) & 0xF3F | 0x40
    if kind == "real":
        registers = {name: word & 0xFFFF_FFFF for name, word in registers.items()}
        registers["rsp"] = source.choice((0x6F00, 0x7FFF, 1, 0))
    return registers


def _word(source: Random, base: int, bits: int) -> int:
    """What a register holds: mostly a pointer to somewhere interesting."""
    match source.randrange(12):
        case 0 | 1 | 2:
            return base + DATA + source.randrange(DATA_SIZE)
        case 3:
            return base + CODE + source.randrange(0x2000)
        case 4:
            return (
                base
                + source.choice((READ_ONLY, DATA + DATA_SIZE, CODE, SIZE))
                - source.randrange(9)
            )
        case 5:
            return base + DATA + 64 * source.randrange(100) + 60  # across a line
        case 6:
            return source.choice((TABLES, GDT, STACK_TOP, SIZE - 4, SIZE + 0x800))
        case 7:
            return source.randrange(300)
        case 8:
            return -source.randrange(1, 300) & _EVERYTHING
        case 9:
            return 0x7FFF_FFFF_FFFF - source.randrange(9)
        case _:
            return source.getrandbits(source.choice((16, 32, 64)))
