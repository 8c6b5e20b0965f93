"""Between formats, to and from integers, and to integers that stay floating-point numbers.

With F80 on either side a conversion follows x87, else SSE.
"""

from __future__ import annotations

from trapline.processor.softfloat.arithmetic import finish, flush, note_denormal
from trapline.processor.softfloat.context import DE, IE, NEAREST, OE, PE, UE, ZERO, Context
from trapline.processor.softfloat.format import (
    DENORMAL,
    F16,
    F80,
    INFINITY,
    QUIET,
    SIGNALLING,
    UNSUPPORTED,
    Format,
    kind,
    unpack,
)
from trapline.processor.softfloat.format import ZERO as ZERO_KIND
from trapline.processor.softfloat.nan import propagate_one
from trapline.processor.softfloat.rounding import round_pack, shift_right


def convert(source: Format, target: Format, bits: int, context: Context) -> int:
    """CVTSS2SD, CVTSD2SS, VCVTPH2PS, VCVTPS2PH, FLD and FST of m32 and m64.

    FLD pushes the number even if DE is unmasked; only IE keeps it from doing so.
    """
    if source is target:
        return bits
    if source is not F16 and F80 not in (source, target):
        bits = flush(source, bits, context)
    operand = kind(source, bits)
    if operand >= QUIET:
        if operand != QUIET:
            context.flags |= IE
        return target.indefinite if operand == UNSUPPORTED else resize_nan(source, target, bits)
    # Half-precision denormals are never an exception (SDM 1, "Half-Precision Floating-Point
    # Conversion"); neither is a denormal that FST stores.
    if operand == DENORMAL and source is not F16 and source is not F80:
        context.flags |= DE
    return _resize(source, target, bits, context)


def _resize(source: Format, target: Format, bits: int, context: Context) -> int:
    sign, exponent, significand = unpack(source, bits)
    operand = kind(source, bits)
    if operand == ZERO_KIND:
        return sign << target.sign_shift
    if operand == INFINITY:
        return sign << target.sign_shift | target.infinity
    exponent += target.bias - source.bias + target.precision - source.precision
    if target is F80:
        dropped = significand.bit_length() - 64
        return sign << 79 | exponent + dropped << 64 | significand << -dropped
    if target is F16 and context.ftz:
        return _without_ftz(target, sign, exponent, significand, context)
    result = round_pack(target, sign, exponent, significand, context)
    if source is F80 and context.flags & (OE | UE) & ~context.masks:
        context.flags &= ~PE  # nothing is stored, so nothing was rounded
        context.rounded_up = False
    return result


def _without_ftz(
    target: Format, sign: int, exponent: int, significand: int, context: Context
) -> int:
    """VCVTPS2PH knows no flush to zero."""
    context.ftz = False
    result = round_pack(target, sign, exponent, significand, context)
    context.ftz = True
    return result


def resize_nan(source: Format, target: Format, bits: int) -> int:
    """The NaN in another format, quieted: sign and the upper bits of the payload stay."""
    payload = bits & (source.one - 1)
    shift = target.precision - source.precision
    payload = payload << shift if shift > 0 else payload >> -shift
    sign = bits >> source.sign_shift
    return sign << target.sign_shift | target.infinity | target.quiet | payload


def widen(source: Format, bits: int, context: Context) -> int:
    """The m32 or m64 operand of an x87 instruction, as the F80 the arithmetic takes.

    A denormal raises DE, which an invalid operand in the same instruction takes back; a
    signalling NaN stays one, so that the arithmetic finds it.
    """
    if kind(source, bits) == SIGNALLING:
        return resize_nan(source, F80, bits) & ~F80.quiet
    return convert(source, F80, bits, context)


def to_integer(
    form: Format,
    bits: int,
    width: int,
    context: Context,
    *,
    signed: bool = True,
    truncate: bool = False,
) -> int:
    """The number rounded to an integer of `width` bits, as a bit pattern.

    What does not fit raises IE and gives the integer indefinite: the most negative number, or
    all ones if not `signed` (AVX-512). Denormals are no exception of their own.
    """
    indefinite = 1 << (width - 1) if signed else (1 << width) - 1
    bits = flush(form, bits, context)
    operand = kind(form, bits)
    if operand == ZERO_KIND:
        return 0
    sign, exponent, significand = unpack(form, bits)
    exponent -= form.bias + form.precision - 1
    if operand >= INFINITY or significand.bit_length() + exponent > width:
        context.flags |= IE
        return indefinite
    rounding = ZERO if truncate else context.rounding
    magnitude, rest, up = shift_right(rounding, sign, significand, -exponent)
    number = -magnitude if sign else magnitude
    lowest = -1 << (width - 1) if signed else 0
    if not lowest <= number < lowest + (1 << width):
        context.flags |= IE
        return indefinite
    if rest:
        context.flags |= PE
        context.rounded_up = up
    return number & ((1 << width) - 1)


def from_integer(
    form: Format, pattern: int, width: int, context: Context, *, signed: bool = True
) -> int:
    """The number an integer of `width` bits is worth; F80 (FILD) holds each of them exactly."""
    if pattern == 0:
        return 0
    sign = pattern >> (width - 1) if signed else 0
    magnitude = (1 << width) - pattern if sign else pattern
    exponent = form.bias + form.precision - 1
    if form is F80:
        dropped = magnitude.bit_length() - 64
        return sign << 79 | exponent + dropped << 64 | magnitude << -dropped
    return round_pack(form, sign, exponent, magnitude, context)


def round_to_integral(
    form: Format,
    bits: int,
    context: Context,
    *,
    rounding: int | None = None,
    suppress_precision: bool = False,
) -> int:
    """The nearest integer by `rounding` (default: the context's), in the same format."""
    bits = flush(form, bits, context)
    operand = kind(form, bits)
    if operand >= QUIET:
        return propagate_one(form, bits, context)
    if form is F80:
        note_denormal(form, bits, context)
    if operand in (ZERO_KIND, INFINITY):
        return bits
    sign, exponent, significand = unpack(form, bits)
    dropped = form.bias + form.precision - 1 - exponent
    if dropped <= 0:
        return bits
    mode = context.rounding if rounding is None else rounding
    magnitude, rest, up = shift_right(mode, sign, significand, dropped)
    if rest and not suppress_precision:
        context.flags |= PE
        context.rounded_up = up
    if magnitude == 0:
        return sign << form.sign_shift
    exact = Context(NEAREST)
    return finish(form, sign, form.bias + form.precision - 1, magnitude, exact)


def round_by_immediate(form: Format, bits: int, immediate: int, context: Context) -> int:
    """ROUNDSS: bits 1:0 of the immediate round, or MXCSR if bit 2 is set; bit 3 hushes PE."""
    rounding = None if immediate & 4 else immediate & 3
    suppress = bool(immediate & 8)
    return round_to_integral(form, bits, context, rounding=rounding, suppress_precision=suppress)
