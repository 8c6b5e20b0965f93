"""Where a memory operand is put, and the registers and displacement that lead there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from iced_x86 import Register

from tests.against.assemble import Memory
from tests.against.layout import (
    DATA,
    FS_BASE,
    GS_BASE,
    HIGH,
    LINE,
    NON_CANONICAL,
    PAGE,
    READ_ONLY,
    UNMAPPED,
)

RSP = 4
SHAPES = (
    "base", "base+8", "base+32", "base+index", "base+index+8", "base+index+32", "index+32", "32",
    "rip",
)  # fmt: skip
_SEGMENTS = (Register.NONE, Register.NONE, Register.FS, Register.GS)
_BASES = {Register.NONE: 0, Register.FS: FS_BASE, Register.GS: GS_BASE}
# How many cases of a form share the same ways of addressing and the same vector immediates.
EPOCH = 200
# What is larger than this is written in steps, and how far it gets before a fault is not stated.
WHOLE = 16


class Unreachable(Exception):
    """The chosen shape cannot lead to the chosen place."""


@dataclass(frozen=True)
class Plan:
    """How an operand is addressed."""

    shape: str
    segment: int
    address_bits: int
    bits: int = 64

    @property
    def segment_base(self) -> int:
        return _BASES[self.segment]


def plan(number: int, bits: int, name: str) -> Plan:
    """The addressing of the n-th case of the form of that name.

    EPOCH cases share a few ways, for each is native code of its own; the ways differ from form
    to form and from epoch to epoch.
    """
    ways = _ways(name, number // EPOCH, bits)
    way = ways[number % len(ways)]
    shape = SHAPES[way % 9]
    if bits == 32:
        return Plan(shape if shape != "rip" else "32", Register.NONE, 32, bits)
    return Plan(shape, _SEGMENTS[way // 9 % 4], 32 if way // 36 % 3 == 2 else 64)


@cache
def _ways(name: str, epoch: int, bits: int) -> list[int]:
    source = Random(f"ways {name} {epoch}")
    return source.sample(range(108), 5) if bits == 64 else source.sample(range(9), 3)


@dataclass(frozen=True)
class Place:
    """Where an operand lies, and whether an access there is expected to fault."""

    linear: int
    faults: bool = False


def place(source: Random, size: int, *, writes: bool, locked: bool, calm: bool = False) -> Place:
    """A place for `size` bytes: mostly allowed, often on an edge; `calm` never faults."""
    size = max(size, 1)
    chance = source.random()
    if locked and size <= LINE:
        return _inside_a_line(source, size, calm=calm, chance=chance)
    if chance < 0.35:
        return Place(_aligned(source, DATA.linear, DATA.end, size))
    if chance < 0.50:
        return Place(source.randrange(DATA.linear, DATA.end - size + 1))
    if chance < 0.60 and size > 1:  # across a line, or across the two pages
        edge = DATA.linear + (PAGE if source.random() < 0.4 else LINE * source.randrange(9, 50))
        return Place(edge - source.randrange(1, min(size, 512)))
    if chance < 0.70:
        return Place(_aligned(source, HIGH.linear, HIGH.end, size))
    if chance < 0.76:
        return Place(source.choice((DATA.linear, DATA.end - size, HIGH.linear, HIGH.end - size)))
    if calm:
        return Place(_aligned(source, DATA.linear, DATA.end, size))
    if chance < 0.83:
        return Place(_aligned(source, READ_ONLY.linear, READ_ONLY.end, size), faults=writes)
    if chance < 0.88 and 1 < size <= WHOLE:
        return Place(READ_ONLY.linear - source.randrange(1, size), faults=writes)
    if chance < 0.92 and 1 < size <= WHOLE:
        end = source.choice((READ_ONLY.end, HIGH.end))
        return Place(end - source.randrange(1, size), faults=True)
    if chance < 0.97:
        linear = source.choice((UNMAPPED, DATA.linear - PAGE, HIGH.end, READ_ONLY.end))
        return Place(linear + source.randrange(PAGE - size), faults=True)
    return Place(NON_CANONICAL + source.randrange(1 << 40), faults=True)


def _aligned(source: Random, start: int, end: int, size: int) -> int:
    step = 1 << (min(size, 64) - 1).bit_length()
    return source.randrange(start, end - size + 1, step)


def _inside_a_line(source: Random, size: int, *, calm: bool, chance: float) -> Place:
    """Never across a line: the host must not take a bus lock."""
    within = source.randrange(LINE - size + 1)
    if chance < 0.5:
        within = within // size * size
    line = LINE * source.randrange(PAGE // LINE)
    if chance < 0.75 or calm:
        region = source.choice((DATA.linear, DATA.linear + PAGE, HIGH.linear))
        return Place(region + line + within)
    if chance < 0.96:
        region = source.choice((READ_ONLY.linear, UNMAPPED, HIGH.end))
        return Place(region + line + within, faults=True)
    return Place(NON_CANONICAL + line + within, faults=True)


def solve(
    source: Random, way: Plan, linear: int, registers: list[int], pinned: set[int]
) -> tuple[Memory, set[int]]:
    """The operand that leads to `linear`, after setting registers; also which ones it uses."""
    width = way.address_bits
    mask = (1 << width) - 1
    offset = (linear - way.segment_base) & (1 << 64) - 1
    if offset > mask:
        raise Unreachable
    if way.shape == "rip":
        name = Register.RIP if width == 64 else Register.EIP
        return Memory(name, displacement=offset, displacement_size=width // 8), set()
    if way.shape == "32":
        if width == 64 and _signed(offset, 64) != _signed(offset, 32):
            raise Unreachable
        return Memory(displacement=offset, displacement_size=width // 8), set()
    return _through_registers(source, way, offset, registers, pinned)


def _through_registers(
    source: Random, way: Plan, offset: int, registers: list[int], pinned: set[int]
) -> tuple[Memory, set[int]]:
    width = way.address_bits
    mask = (1 << width) - 1
    named = Register.RAX if width == 64 else Register.EAX
    numbers = range(16 if way.bits == 64 else 8)
    size, displacement = _displacement(source, way)
    base = None
    if way.shape.startswith("base"):
        base = source.choice([number for number in numbers if number not in pinned])
    index, scale = None, 1
    if "index" in way.shape:
        index = source.choice([number for number in numbers if number != RSP])
        scale = source.choice((1, 2, 4, 8))
    if index is not None and base is None:
        if index in pinned:
            raise Unreachable
        displacement = _signed(displacement - (displacement - offset) % scale, 32)
        rest = (offset - displacement & mask) // scale
        _put(source, registers, index, rest | (source.randrange(scale) << width) // scale, way)
    elif index is not None and index == base:
        displacement = _solve_square(offset, displacement, size, scale)
        factor = 1 + scale
        rest = offset - displacement & mask
        value = rest // 2 if factor == 2 else rest * pow(factor, -1, 1 << width) & mask
        _put(source, registers, index, value, way)
    elif base is not None:
        added = 0
        if index is not None:
            if index not in pinned and source.random() < 0.4:
                registers[index] = source.randrange(-300, 300) & (1 << way.bits) - 1
            added = registers[index] * scale
        _put(source, registers, base, offset - added - displacement & mask, way)
    names = [Register.NONE if number is None else named + number for number in (base, index)]
    operand = Memory(*names, scale, displacement, size)
    return operand, {number for number in (base, index) if number is not None}


def _displacement(source: Random, way: Plan) -> tuple[int, int]:
    """The size as iced-x86 counts it, and the value."""
    if way.shape.endswith("+8"):
        return 1, source.randrange(-128, 128)
    if way.shape.endswith("+32"):
        value = source.choice((source.randrange(-1 << 31, 1 << 31), source.randrange(-4096, 4096)))
        return way.address_bits // 8, value
    return 0, 0


def _solve_square(offset: int, displacement: int, size: int, scale: int) -> int:
    """With base and index one register, only an even rest can be halved."""
    if scale == 1 and (offset - displacement) % 2:
        if size == 0:
            raise Unreachable
        displacement ^= 1
    return displacement


def _put(source: Random, registers: list[int], number: int, value: int, way: Plan) -> None:
    """A 32-bit address ignores what lies above it in the register."""
    if way.address_bits < way.bits:
        value |= source.getrandbits(32) << 32
    registers[number] = value


def _signed(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> width - 1 else value
