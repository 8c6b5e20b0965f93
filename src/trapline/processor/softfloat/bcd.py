"""Packed decimal, the 80-bit integers of FBLD and FBSTP: 18 digits and a sign."""

from __future__ import annotations

from trapline.processor.softfloat.context import IE, Context
from trapline.processor.softfloat.convert import from_integer, round_to_integral
from trapline.processor.softfloat.format import F80, INFINITY, ZERO, kind, unpack

INDEFINITE = 0xFFFF << 64 | 0xC000 << 48

_DIGITS = 18


def load_bcd(pattern: int) -> int:
    """FBLD, which is exact. A digit above nine counts for its worth, as on AMD's processors."""
    magnitude = 0
    for digit in range(_DIGITS):
        magnitude += (pattern >> 4 * digit & 15) * 10**digit
    return (pattern >> 79) << 79 | from_integer(F80, magnitude, 64, Context(), signed=False)


def store_bcd(bits: int, context: Context) -> int:
    """FBSTP: rounded to an integer; what has more than 18 digits is invalid."""
    operand = kind(F80, bits)
    if operand == ZERO:
        return bits & F80.sign
    if operand < INFINITY:
        rounded = Context(context.rounding)
        sign, exponent, significand = unpack(F80, round_to_integral(F80, bits, rounded))
        shift = F80.bias + 63 - exponent
        if shift >= 0 and significand >> shift < 10**_DIGITS:
            context.flags |= rounded.flags & ~2
            context.rounded_up = rounded.rounded_up
            return sign << 79 | int(str(significand >> shift), 16)
    context.flags |= IE
    return INDEFINITE
