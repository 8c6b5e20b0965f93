"""Operand values worth trying: the edges of integers, floating-point numbers and control words."""

from __future__ import annotations

import struct
from functools import cache, partial
from random import Random

from tests.against.state import FloatState

KINDS = ("i8", "i16", "i32", "i64", "f32", "f64")
POOL = 1 << 14
_BYTES = {"i8": 1, "i16": 2, "i32": 4, "i64": 8, "f32": 4, "f64": 8}


def integer(source: Random, width: int) -> int:
    """A bit pattern of a width: often an edge, otherwise anything."""
    top = 1 << width - 1
    mask = (top << 1) - 1
    match source.randrange(8):
        case 0 | 1:
            return source.choice(
                (0, 1, 2, 3, top, top - 1, top + 1, mask, mask - 1, mask // 3, mask // 3 * 2)
            )
        case 2:
            return source.randrange(1, 256) & mask
        case 3:
            return -source.randrange(1, 256) & mask
        case 4:
            return 1 << source.randrange(width)
        case 5:
            # An edge of a narrower operand, below unrelated bits.
            part = source.choice([size for size in (8, 16, 32, 64) if size <= width])
            low = integer(source, part) if part < width else source.getrandbits(width)
            return (source.getrandbits(width) & ~((1 << part) - 1) | low) & mask
        case _:
            return source.getrandbits(width)


def count(source: Random) -> int:
    """A byte that counts bits to shift or rotate by."""
    if source.random() < 0.5:
        return source.choice(
            (0, 1, 1, 2, 3, 7, 8, 9, 15, 16, 17, 18, 24, 31, 32, 33, 34, 63, 64, 65, 127, 128, 255)
        )
    return source.randrange(256 if source.random() < 0.3 else 40)


def _assembled(source: Random, exponent_bits: int, fraction_bits: int) -> int:
    """A floating-point pattern by parts: sign, then the exponent's and the fraction's edges."""
    bias = (1 << exponent_bits - 1) - 1
    infinity = (1 << exponent_bits) - 1
    whole = (1 << fraction_bits) - 1
    quiet = 1 << fraction_bits - 1
    fraction = source.choice(
        (0, 0, 1, whole, quiet, quiet - 1, quiet + 1, source.getrandbits(fraction_bits))
    )
    kind = source.randrange(10)
    if kind == 0:
        exponent = 0  # zeros and denormals
    elif kind == 1:
        exponent = infinity  # infinities and NaNs
    elif kind == 2:
        exponent = source.choice((1, 2, infinity - 1, infinity - 2))
    elif kind in (3, 4):
        # Around where integers of 8 to 64 bits end, and where fractions begin.
        exponent = bias + source.choice((7, 8, 15, 16, 30, 31, 32, 62, 63, 64, -1, -2, 0, 1))
        exponent = min(exponent, infinity - 1)
    elif kind == 5:
        exponent = source.randrange(infinity + 1)
    else:
        exponent = bias + source.randrange(-12, 13)
        # Few fraction bits: exact results and halves.
        if source.random() < 0.5:
            fraction = source.getrandbits(4) << fraction_bits - 4
    sign = source.getrandbits(1)
    return sign << exponent_bits + fraction_bits | exponent << fraction_bits | fraction


def float32(source: Random) -> int:
    return _assembled(source, 8, 23)


def float64(source: Random) -> int:
    return _assembled(source, 11, 52)


def float80(source: Random) -> bytes:
    """Ten bytes; now and then an encoding only the 8087 knew (unnormal, pseudo-denormal ...)."""
    match source.randrange(16):
        case 0:
            return source.randbytes(10)
        case 1:
            sign = source.getrandbits(1) << 15
            significand = source.choice((0, 1, 1 << 63, (1 << 63) - 1, 1 << 62, (1 << 64) - 1))
            exponent = source.choice((0, 1, 0x3FFF, 0x7FFE, 0x7FFF))
            return struct.pack("<QH", significand, sign | exponent)
        case 2:
            value = float(source.randrange(-(1 << 40), 1 << 40))
            return widened(struct.unpack("<Q", struct.pack("<d", value))[0])
        case 3 | 4:
            return widened(float64(source))
        case _:
            pattern = _assembled(source, 15, 63)
            sign_and_exponent, fraction = pattern >> 63, pattern & (1 << 63) - 1
            integer_bit = 1 << 63 if sign_and_exponent & 0x7FFF else 0
            return struct.pack("<QH", integer_bit | fraction, sign_and_exponent)


def widened(pattern: int) -> bytes:
    """The 80-bit number equal to a 64-bit one; a denormal gives zero."""
    sign, exponent, fraction = pattern >> 63, pattern >> 52 & 0x7FF, pattern & (1 << 52) - 1
    if exponent == 0:
        return struct.pack("<QH", 0, sign << 15)
    wide = 0x7FFF if exponent == 0x7FF else exponent - 1023 + 16383
    return struct.pack("<QH", 1 << 63 | fraction << 11, sign << 15 | wide)


def packed_decimal(source: Random) -> bytes:
    """What FBLD reads: 18 digits, a sign."""
    digits = bytes(source.randrange(10) << 4 | source.randrange(10) for _ in range(9))
    if source.random() < 0.2:
        digits = bytes(9) if source.random() < 0.5 else b"\x99" * 9
    return digits + bytes([source.choice((0, 0x80))])


def element(source: Random, kind: str) -> bytes:
    match kind:
        case "f32":
            return float32(source).to_bytes(4, "little")
        case "f64":
            return float64(source).to_bytes(8, "little")
    return integer(source, 8 * _BYTES[kind]).to_bytes(_BYTES[kind], "little")


@cache
def _pool(kind: str) -> list[bytes]:
    """Elements made ahead: a case needs dozens, and making each anew takes most of its time."""
    source = Random(f"pool {kind}")
    make = float80 if kind == "f80" else partial(element, kind=kind)
    return [make(source) for _ in range(POOL)]


def vector(source: Random, kind: str, size: int = 16) -> bytes:
    """`size` bytes of elements of a kind."""
    if source.random() < 0.15:
        return source.randbytes(size)
    return b"".join(source.choices(_pool(kind), k=-(-size // _BYTES[kind])))[:size]


def registers(source: Random, number: int) -> list[int]:
    """Values for general registers."""
    chosen = source.choices(_pool("i64"), k=number)
    if source.random() < 0.3:
        return [source.getrandbits(64) for _ in chosen]
    return [int.from_bytes(value, "little") for value in chosen]


def near(source: Random, content: bytes, kind: str) -> bytes:
    """`content` with some elements nudged or negated: equal operands, cancellation, ties."""
    size = _BYTES[kind]
    parts = bytearray(content)
    for start in range(0, len(content) - size + 1, size):
        value = int.from_bytes(parts[start : start + size], "little")
        match source.randrange(5):
            case 0:
                value += source.choice((1, -1))
            case 1:
                value ^= 1 << 8 * size - 1
            case 2:
                value = int.from_bytes(element(source, kind), "little")
        parts[start : start + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(parts)


def mxcsr(source: Random, masked: float = 0.8) -> int:
    """Every rounding mode, FTZ and DAZ; mostly masked, now and then not."""
    flags = source.getrandbits(6) if source.random() < 0.3 else 0
    masks = 0x1F80 if source.random() < masked else source.getrandbits(6) << 7
    return (
        flags
        | masks
        | source.getrandbits(2) << 13
        | (source.random() < 0.25) << 15
        | (source.random() < 0.25) << 6
    )


def control_word(source: Random, masked: float = 0.8) -> int:
    """Every rounding mode and precision; mostly masked."""
    masks = 0x3F if source.random() < masked else source.getrandbits(6)
    precision = source.choice((0, 2, 3, 3, 3))
    return masks | 0x40 | precision << 8 | source.getrandbits(2) << 10


def float_state(
    source: Random, kind: str, *, mmx: bool = False, uses: str = "x87 sse"
) -> FloatState:
    """A whole x87 and SSE state, with vectors of a kind; what is not used is nearly always
    masked."""
    state = FloatState(
        fcw=control_word(source, 0.8 if "x87" in uses else 0.98),
        mxcsr=mxcsr(source, 0.8 if "sse" in uses else 0.98),
    )
    state.fsw = _status_word(source, state.fcw)
    state.ftw = source.choice((0xFF, 0xFF, 0xFF, 0, source.getrandbits(8)))
    if mmx:
        exponents = source.choice((b"\xff\xff", source.randbytes(2)))
        state.st = [vector(source, kind, 8) + exponents for _ in range(8)]
    else:
        state.st = source.choices(_pool("f80"), k=8)
        if source.random() < 0.25:
            state.st[1] = near(source, state.st[0], "i8" if source.random() < 0.3 else "i64")
    vectors = vector(source, kind, 256)
    state.xmm = [vectors[start : start + 16] for start in range(0, 256, 16)]
    return state


def _status_word(source: Random, control: int) -> int:
    """Any top and conditions; ES and B as the flags and masks demand."""
    flags = source.getrandbits(6) if source.random() < 0.15 else 0
    if source.random() < 0.8:
        flags &= control  # a pending exception makes most instructions fault
    pending = 0x8080 if flags & ~control & 0x3F else 0
    top = source.randrange(8) if source.random() < 0.8 else 0
    return flags | pending | source.getrandbits(3) << 8 | top << 11 | source.getrandbits(1) << 14
