"""What only x87 has: partial remainders, scaling, taking apart, classifying, its constants.

The register stack, its tags and the condition codes in the status word are the caller's.
"""

from __future__ import annotations

from typing import NamedTuple

from trapline.processor.softfloat.arithmetic import note_denormal
from trapline.processor.softfloat.context import DE, ZE, Context
from trapline.processor.softfloat.format import (
    DENORMAL,
    F80,
    INFINITY,
    NORMAL,
    QUIET,
    SIGNALLING,
    UNSUPPORTED,
    ZERO,
    kind,
    unpack,
)
from trapline.processor.softfloat.nan import invalid, propagate, propagate_one, raise_before
from trapline.processor.softfloat.rounding import round_extended, shift_right

_OFFSET = F80.bias + 63


class Remainder(NamedTuple):
    """What FPREM leaves: if `partial` (C2), `quotient` is 0; else its low bits are C0, C3, C1."""

    result: int
    quotient: int
    partial: bool


def fprem(a: int, b: int, context: Context) -> Remainder:
    """a - b * (a / b truncated)."""
    return _remainder(a, b, context, nearest=False)


def fprem1(a: int, b: int, context: Context) -> Remainder:
    """a - b * (a / b to the nearest or even integer)."""
    return _remainder(a, b, context, nearest=True)


def _remainder(a: int, b: int, context: Context, *, nearest: bool) -> Remainder:
    kind_a, kind_b = kind(F80, a), kind(F80, b)
    if kind_a >= QUIET or kind_b >= QUIET:
        return Remainder(propagate(F80, a, b, context), 0, False)
    if kind_a == INFINITY or kind_b == ZERO:
        return Remainder(invalid(F80, context), 0, False)
    if DENORMAL in (kind_a, kind_b):
        context.flags |= DE
    if kind_a == ZERO:
        return Remainder(a, 0, False)
    sign, exponent_a, significand_a = unpack(F80, a)
    if kind_b == INFINITY:
        return Remainder(round_extended(sign, exponent_a, significand_a, context), 0, False)
    _, exponent_b, significand_b = unpack(F80, b)
    distance = exponent_a - exponent_b
    distance += significand_a.bit_length() - significand_b.bit_length()
    if distance < -1:  # a is less than half of b
        return Remainder(round_extended(sign, exponent_a, significand_a, context), 0, False)
    partial = distance >= 64
    if partial:
        # One step of a long division. SDM 2, "FPREM" leaves to the implementation how many bits
        # of quotient it yields, from 32 to 63; measured on AMD, and the same in Bochs.
        exponent_b += distance - (distance & 31 | 32)
    exponent = min(exponent_a, exponent_b)
    divisor = significand_b << exponent_b - exponent
    quotient, rest = divmod(significand_a << exponent_a - exponent, divisor)
    if partial:
        quotient = 0
    elif nearest and (2 * rest > divisor or (2 * rest == divisor and quotient & 1)):
        quotient += 1
        rest = divisor - rest
        sign ^= 1
    if rest == 0:
        return Remainder(a & F80.sign, quotient, partial)
    return Remainder(round_extended(sign, exponent, rest, context), quotient, partial)


def fscale(a: int, b: int, context: Context) -> int:
    """a * 2 ** (b truncated)."""
    kind_a, kind_b = kind(F80, a), kind(F80, b)
    if kind_a >= QUIET or kind_b >= QUIET:
        return propagate(F80, a, b, context)
    down = b >> 79
    if kind_b == INFINITY and kind_a == (INFINITY if down else ZERO):
        return invalid(F80, context)
    if DENORMAL in (kind_a, kind_b):
        context.flags |= DE
    if kind_b == INFINITY:
        return a & F80.sign | (0 if down else F80.infinity)
    if kind_a in (ZERO, INFINITY):
        return a
    sign, exponent, significand = unpack(F80, a)
    _, exponent_b, significand_b = unpack(F80, b)
    steps = 0x20000
    if exponent_b < F80.bias + 17:
        steps = significand_b >> _OFFSET - exponent_b
    return round_extended(sign, exponent + (-steps if down else steps), significand, context)


def fxtract(a: int, context: Context) -> tuple[int, int]:
    """(significand between 1 and 2, exponent), both as numbers."""
    kind_a = kind(F80, a)
    if kind_a >= QUIET:
        result = propagate_one(F80, a, context)
        return result, result
    if kind_a == ZERO:
        raise_before(F80, ZE, context)
        return a, F80.sign | F80.infinity
    if kind_a == INFINITY:
        return a, F80.infinity
    note_denormal(F80, a, context)
    _, exponent, significand = unpack(F80, a)
    unbiased = exponent - _OFFSET + significand.bit_length() - 1
    significand <<= 64 - significand.bit_length()
    return a & F80.sign | F80.bias << 64 | significand, _small_integer(unbiased)


def _small_integer(number: int) -> int:
    if number == 0:
        return 0
    sign, magnitude = (1, -number) if number < 0 else (0, number)
    length = magnitude.bit_length()
    return sign << 79 | F80.bias + length - 1 << 64 | magnitude << 64 - length


# C3, C2, C0 as bits 2:0 (SDM 2, "FXAM"); an empty register, 101b, is for the caller to see.
_EXAMINED = {
    UNSUPPORTED: 0b000,
    QUIET: 0b001,
    SIGNALLING: 0b001,
    NORMAL: 0b010,
    INFINITY: 0b011,
    ZERO: 0b100,
    DENORMAL: 0b110,
}


def fxam(bits: int) -> int:
    """C3, C2, C1, C0 as bits 3:0; C1 is the sign."""
    code = _EXAMINED[kind(F80, bits)]
    return (code & 0b110) << 1 | bits >> 79 << 1 | code & 1


# The logarithms and pi to 128 bits, the integer bit first, with the exponent.
_CONSTANTS = {
    "fldl2t": (1, 0xD49A784BCD1B8AFE492BF6FF4DAFDB4C),
    "fldl2e": (0, 0xB8AA3B295C17F0BBBE87FED0691D3E88),
    "fldpi": (1, 0xC90FDAA22168C234C4C6628B80DC1CD1),
    "fldlg2": (-2, 0x9A209A84FBCFF7988F8959AC0B7C9178),
    "fldln2": (-1, 0xB17217F7D1CF79ABC9E3B39803F2F6AF),
}


def constant(mnemonic: str, context: Context) -> int:
    """FLDPI and its kin: rounded by the context's rounding, without PE and without C1."""
    if mnemonic == "fldz":
        return 0
    if mnemonic == "fld1":
        return F80.bias << 64 | F80.one
    exponent, significand = _CONSTANTS[mnemonic]
    rounded, _, _ = shift_right(context.rounding, 0, significand, 64)
    return F80.bias + exponent << 64 | rounded
