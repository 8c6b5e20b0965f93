"""From an exact value to the nearest bit pattern: rounding, overflow, underflow, precision.

A value arrives as `significand * 2 ** (exponent - bias - precision + 1)` of its format; bits
that were lost before must have left a one in the lowest bit, below the rounding position.
"""

from __future__ import annotations

from trapline.processor.softfloat.context import DOWN, NEAREST, OE, PE, UE, UP, Context
from trapline.processor.softfloat.format import F80, Format

# SDM 1, "Numeric Overflow Exception (#O)": what an unmasked overflow takes from the exponent
# of a result that goes to an x87 register, and an unmasked underflow adds.
EXPONENT_WRAP = 24576


def rounds_up(rounding: int, sign: int, significand: int, rest: int, dropped: int) -> bool:
    """Whether the magnitude grows when `rest`, the `dropped` low bits (not zero), goes."""
    if rounding == NEAREST:
        half = 1 << (dropped - 1)
        return rest > half or (rest == half and significand & 1 == 1)
    if rounding == DOWN:
        return sign == 1
    return rounding == UP and sign == 0


def shift_right(rounding: int, sign: int, significand: int, dropped: int) -> tuple[int, int, bool]:
    """(rounded, rest, went up) of `significand / 2 ** dropped`; exact if `dropped` <= 0."""
    if dropped <= 0:
        return significand << -dropped, 0, False
    rest = significand & ((1 << dropped) - 1)
    kept = significand >> dropped
    if rest and rounds_up(rounding, sign, kept, rest, dropped):
        return kept + 1, rest, True
    return kept, rest, False


def overflows_to_infinity(rounding: int, sign: int) -> bool:
    """Whether the masked answer to overflow is infinity, not the largest number."""
    return rounding == NEAREST or rounding == (DOWN if sign else UP)


def round_pack(form: Format, sign: int, exponent: int, significand: int, context: Context) -> int:
    """The pattern in F16, F32 or F64 of a value that is not zero."""
    dropped = significand.bit_length() - form.precision
    exponent += dropped
    if exponent <= 0:
        return _round_tiny(form, sign, exponent, significand, context)
    if dropped > 0:
        rest = significand & ((1 << dropped) - 1)
        significand >>= dropped
        if rest:
            context.flags |= PE
            if rounds_up(context.rounding, sign, significand, rest, dropped):
                significand += 1
                context.rounded_up = True
    else:
        significand <<= -dropped
    # The integer bit of the significand, and a carry out of it, add up in the exponent.
    bits = (exponent - 1 << form.fraction) + significand
    if bits >= form.infinity:
        return _overflow(form, sign, context)
    return sign << form.sign_shift | bits


def _overflow(form: Format, sign: int, context: Context) -> int:
    context.flags |= OE
    if not context.masks & OE:
        return sign << form.sign_shift | form.infinity  # nobody stores it
    context.flags |= PE
    context.rounded_up = overflows_to_infinity(context.rounding, sign)
    magnitude = form.infinity if context.rounded_up else form.largest
    return sign << form.sign_shift | magnitude


def _round_tiny(form: Format, sign: int, exponent: int, significand: int, context: Context) -> int:
    """A value below the smallest normal number, unless rounding lifts it there.

    x86 looks for tininess after rounding: as if the exponent had no limit.
    """
    rounding = context.rounding
    dropped = significand.bit_length() - form.precision
    normal, rest, up = shift_right(rounding, sign, significand, dropped)
    if exponent < 0 or normal >> form.precision == 0:
        if not context.masks & UE:
            context.flags |= UE | PE if rest else UE
            context.rounded_up = up
            return sign << form.sign_shift
        if context.ftz:
            context.flags |= UE | PE
            return sign << form.sign_shift
        bits, rest, up = shift_right(rounding, sign, significand, dropped + 1 - exponent)
        if rest:
            context.flags |= UE | PE
    else:
        bits, rest, up = shift_right(rounding, sign, significand, dropped + 1)
        context.flags |= PE
    context.rounded_up = up
    return sign << form.sign_shift | bits


def round_extended(
    sign: int, exponent: int, significand: int, context: Context, precision: int = 64
) -> int:
    """The F80 pattern of a value that is not zero, rounded to `precision` bits.

    The range is F80's whatever the precision is. An unmasked overflow or underflow gives the
    result with its exponent wrapped.
    """
    dropped = significand.bit_length() - precision
    exponent += significand.bit_length() - 64
    kept, rest, up = shift_right(context.rounding, sign, significand, dropped)
    carry = kept >> precision
    if exponent + carry <= 0:
        if context.masks & UE:
            return _denormalize(sign, dropped + 1 - exponent, significand, context, precision)
        context.flags |= UE
        exponent += EXPONENT_WRAP
        if exponent + carry <= 0:  # FSCALE can go that far
            context.flags |= PE
            return sign << 79
    if rest:
        context.flags |= PE
        context.rounded_up = up
    if exponent + carry >= F80.top:
        context.flags |= OE
        if context.masks & OE:
            return _overflow_extended(sign, precision, context)
        exponent -= EXPONENT_WRAP
        if exponent + carry >= F80.top:
            context.flags |= PE
            context.rounded_up = True
            return sign << 79 | F80.infinity
    if carry:
        kept >>= 1
        exponent += 1
    return sign << 79 | exponent << 64 | kept << 64 - precision


def _denormalize(
    sign: int, dropped: int, significand: int, context: Context, precision: int
) -> int:
    kept, rest, context.rounded_up = shift_right(context.rounding, sign, significand, dropped)
    if rest:
        context.flags |= UE | PE
    kept <<= 64 - precision
    return sign << 79 | (kept >> 63) << 64 | kept  # a carry makes the smallest normal number


def _overflow_extended(sign: int, precision: int, context: Context) -> int:
    context.flags |= PE
    context.rounded_up = overflows_to_infinity(context.rounding, sign)
    if context.rounded_up:
        return sign << 79 | F80.infinity
    largest = ((1 << precision) - 1) << (64 - precision)
    return sign << 79 | (F80.top - 1) << 64 | largest
