"""Packed decimal, the 80-bit integers of FBLD and FBSTP: 18 digits and a sign."""

from __future__ import annotations

from trapline.processor.softfloat.context import DE, IE, Context
from trapline.processor.softfloat.convert import from_integer, round_to_integral
from trapline.processor.softfloat.format import F80, INFINITY, ZERO, kind, unpack

# SDM 1, table "Packed Decimal Integer Encodings".
INDEFINITE = 0xFFFF << 64 | 0xC000 << 48

_DIGITS = 18


def fbld(pattern: int) -> int:
    """The decimal integer as a number, exact; a digit above nine counts for its worth.

    That is undefined (SDM 2, "FBLD"); measured on an AMD processor.
    """
    magnitude = 0
    for digit in range(_DIGITS):
        magnitude += (pattern >> 4 * digit & 15) * 10**digit
    return (pattern >> 79) << 79 | from_integer(F80, magnitude, 64, Context(), signed=False)


def fbstp(bits: int, context: Context) -> int:
    """The number rounded to an integer; what has more than 18 digits is invalid."""
    operand = kind(F80, bits)
    if operand == ZERO:
        return bits & F80.sign
    if operand < INFINITY:
        rounded = Context(context.rounding)
        sign, exponent, significand = unpack(F80, round_to_integral(F80, bits, rounded))
        shift = F80.bias + 63 - exponent
        if shift >= 0 and significand >> shift < 10**_DIGITS:
            context.flags |= rounded.flags & ~DE
            context.rounded_up = rounded.rounded_up
            return sign << 79 | int(str(significand >> shift), 16)
    context.flags |= IE
    return INDEFINITE
