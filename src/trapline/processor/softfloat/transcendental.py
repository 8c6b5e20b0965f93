"""The transcendental instructions of x87, correctly rounded: F2XM1, FYL2X, FSIN, FPATAN and kin.

Real processors differ in the last bit: they promise one unit in the last place.
"""

# Like them this reduces the argument of a trigonometric function with a pi of 66 bits (documented
# by Intel, and measured on AMD).  The precision control does not matter here, the rounding control
# does.  A result that had to be computed raises PE, and UE if it is tiny, even if it is exact
# (measured on AMD).

from __future__ import annotations

from collections.abc import Callable

from trapline.processor.softfloat.arithmetic import note_denormal
from trapline.processor.softfloat.context import PE, UE, ZE, Context
from trapline.processor.softfloat.fixed import (
    arctangent,
    exponential_minus_one,
    ln2,
    logarithm,
    pi,
    sine_and_cosine,
)
from trapline.processor.softfloat.format import (
    DENORMAL,
    F80,
    INFINITY,
    QUIET,
    ZERO,
    kind,
    unpack,
)
from trapline.processor.softfloat.nan import invalid, propagate, propagate_one, raise_before
from trapline.processor.softfloat.rounding import round_extended

_OFFSET = F80.bias + 63
_ONE = F80.bias << 64 | F80.one
_HALF = _ONE - (1 << 64)
# SDM 1, "Approximation of Pi": what FSIN, FCOS, FSINCOS and FPTAN take for pi * 2 ** 64.
_PI = 0x3243F6A8885A308D3
_SQRT2 = 0xB504F333F9DE6484  # to 64 bits; any number close to it would do

# A result is sought with this many bits first, and with twice as many as long as they do not
# settle how it rounds.
_WORKING_BITS = 160

# (sign, low, high, exponent): the true value lies strictly between low and high times
# 2 ** exponent.
Bounds = tuple[int, int, int, int]


def _round_between(bounds: Callable[[int], Bounds], context: Context) -> int:
    """The correctly rounded result, given ever narrower bounds for it."""
    bits = _WORKING_BITS
    while True:
        sign, low, high, exponent = bounds(bits)
        drop = low.bit_length() - 70
        if low > 0 and drop > 0 and low >> drop == high - 1 >> drop:
            # The value is not a multiple of 2 ** drop, which the lowest bit remembers.
            significand = (low >> drop) << 1 | 1
            return round_extended(sign, exponent + drop - 1 + _OFFSET, significand, context)
        bits *= 2


def _round_exact(sign: int, exponent: int, significand: int, context: Context) -> int:
    """The result that the function happens to have exactly, before it is rounded to 64 bits."""
    result = round_extended(sign, exponent + _OFFSET, significand, context)
    context.flags |= UE | PE if kind(F80, result) == DENORMAL else PE
    return result


def _number(bits: int) -> tuple[int, int, int, int]:
    """(sign, significand, exponent, position of the highest bit) of a number that is not zero."""
    sign, exponent, significand = unpack(F80, bits)
    exponent -= _OFFSET
    return sign, significand, exponent, exponent + significand.bit_length() - 1


def f2xm1(a: int, context: Context) -> int:
    """2 ** a - 1. Beyond -1 and 1, where it is undefined, a itself, as measured on AMD."""
    kind_a = kind(F80, a)
    if kind_a >= QUIET:
        return propagate_one(F80, a, context)
    if kind_a == INFINITY:
        return F80.sign | _ONE if a & F80.sign else a
    if kind_a == ZERO:
        return a
    note_denormal(F80, a, context)
    sign, significand, exponent, top = _number(a)
    if top >= 0:
        context.flags |= PE
        return F80.sign | _HALF if a == F80.sign | _ONE else a

    def bounds(bits: int) -> Bounds:
        if top <= -bits:  # the first term of the series will do
            width = bits + 8
            first = significand * ln2(width)
            slack = (first >> bits) + significand
            return sign, first - slack, first + slack, exponent - width
        width = bits - top
        argument = significand * ln2(width + 8) >> 8 - exponent
        value = abs(exponential_minus_one(-argument if sign else argument, width))
        return sign, value - 2 * width, value + 2 * width, -width

    return _round_between(bounds, context)


def fyl2x(a: int, b: int, context: Context) -> int:
    """b * log2(a), where a is ST0."""
    kind_a, kind_b = kind(F80, a), kind(F80, b)
    if kind_a >= QUIET or kind_b >= QUIET:
        return propagate(F80, a, b, context)
    sign_b = b & F80.sign
    if kind_a == ZERO:
        if kind_b == ZERO:
            return invalid(F80, context)
        if kind_b != INFINITY:
            raise_before(F80, ZE, context)
        return sign_b ^ F80.sign | F80.infinity
    grows = (a & ~F80.sign) > _ONE  # log2(a) is positive
    if a & F80.sign or (kind_a == INFINITY and kind_b == ZERO):
        return invalid(F80, context)
    if kind_b == INFINITY and a == _ONE:
        return invalid(F80, context)
    note_denormal(F80, a, context)
    note_denormal(F80, b, context)
    sign = sign_b if grows or a == _ONE else sign_b ^ F80.sign
    if kind_a == INFINITY or kind_b == INFINITY:
        return sign | F80.infinity
    if kind_b == ZERO or a == _ONE:
        return sign
    _, significand, exponent, _ = _number(a)
    if exponent > 0:
        significand, exponent = significand << exponent, 0
    return _scaled_logarithm(significand, -exponent, b, context)


def fyl2xp1(a: int, b: int, context: Context) -> int:
    """b * log2(a + 1), where a is ST0.

    The manual leaves a of less than sqrt(1/2) - 1 or more than sqrt(2) - 1 undefined; here it
    is the logarithm down to -1, and below a itself, as measured on AMD.
    """
    kind_a, kind_b = kind(F80, a), kind(F80, b)
    if kind_a >= QUIET or kind_b >= QUIET:
        return propagate(F80, a, b, context)
    sign = (a ^ b) & F80.sign
    if kind_a == INFINITY and (a & F80.sign or kind_b == ZERO):
        return invalid(F80, context)
    if kind_a == ZERO and kind_b == INFINITY:
        return invalid(F80, context)
    note_denormal(F80, a, context)
    note_denormal(F80, b, context)
    if kind_a == INFINITY or kind_b == INFINITY:
        return sign | F80.infinity
    if kind_a == ZERO or kind_b == ZERO:
        return sign
    sign_a, significand, exponent, top = _number(a)
    if sign_a and top >= 0:
        context.flags |= PE
        return a
    if top < -_WORKING_BITS:
        return _scaled_tiny_logarithm(sign_a, significand, exponent, b, context)
    scale = max(-exponent, 0)
    significand <<= max(exponent, 0)
    shifted = (1 << scale) + (-significand if sign_a else significand)
    return _scaled_logarithm(shifted, scale, b, context)


def _scaled_logarithm(numerator: int, scale: int, b: int, context: Context) -> int:
    """b * log2(numerator / 2 ** scale); neither factor is zero."""
    sign_b, significand_b, exponent_b, _ = _number(b)
    whole = numerator.bit_length() - 1
    if numerator << 63 >> whole > _SQRT2:
        whole += 1
    rest = numerator - (1 << whole)
    if rest == 0:
        power = whole - scale
        sign = sign_b ^ (power < 0)
        return _round_exact(sign, exponent_b, significand_b * abs(power), context)

    def bounds(bits: int) -> Bounds:
        width = bits + whole - rest.bit_length() + 1
        natural = logarithm(rest, 1 << whole, width)
        binary = (natural << width) // ln2(width) + (whole - scale << width)
        low = (abs(binary) - 4 * width) * significand_b
        high = (abs(binary) + 4 * width) * significand_b
        return sign_b ^ (binary < 0), low, high, exponent_b - width

    return _round_between(bounds, context)


def _scaled_tiny_logarithm(
    sign: int, significand: int, exponent: int, b: int, context: Context
) -> int:
    """b * log2(1 + a) for an a so small that the first term of the series decides."""
    sign_b, significand_b, exponent_b, _ = _number(b)

    def bounds(bits: int) -> Bounds:
        first = (significand * significand_b << 2 * bits) // ln2(bits)
        slack = first >> _WORKING_BITS - 2
        return sign ^ sign_b, first - slack, first + slack, exponent + exponent_b - bits

    return _round_between(bounds, context)


def fsin(a: int, context: Context) -> int | None:
    """The sine, or None (C2 := 1, ST0 stays) if |a| >= 2 ** 63."""
    return _trigonometric(a, context, _sine, a)


def fcos(a: int, context: Context) -> int | None:
    """The cosine, or None (C2 := 1, ST0 stays) if |a| >= 2 ** 63."""
    return _trigonometric(a, context, _cosine, _ONE)


def fsincos(a: int, context: Context) -> tuple[int, int] | None:
    """(sine for ST0, cosine to push), or None as with FSIN."""
    sine = fsin(a, context)
    if sine is None:
        return None
    if kind(F80, a) >= INFINITY:
        return sine, sine
    cosine = fcos(a, context)
    assert cosine is not None
    return sine, cosine


def fptan(a: int, context: Context) -> tuple[int, int] | None:
    """(tangent for ST0, 1.0 to push), or None as with FSIN; a NaN is pushed twice."""
    tangent = _trigonometric(a, context, _tangent, a)
    if tangent is None:
        return None
    return tangent, tangent if kind(F80, a) >= INFINITY else _ONE


def _trigonometric(
    a: int, context: Context, bounds: Callable[[int, int, int, int], Bounds], of_zero: int
) -> int | None:
    kind_a = kind(F80, a)
    if kind_a >= QUIET:
        return propagate_one(F80, a, context)
    if kind_a == INFINITY:
        return invalid(F80, context)
    if kind_a == ZERO:
        return of_zero
    sign, significand, exponent, top = _number(a)
    if top >= 63:
        return None
    note_denormal(F80, a, context)
    return _round_between(lambda bits: bounds(sign, significand, exponent, bits), context)


def _sine(sign: int, significand: int, exponent: int, bits: int) -> Bounds:
    if 2 * (exponent + significand.bit_length()) <= -bits:
        first = significand << bits
        return sign, first - significand, first, exponent - bits
    quadrant, sine, cosine, width = _reduce(significand, exponent, bits)
    value = cosine if quadrant & 1 else sine
    negative = (quadrant >> 1 & 1) ^ (value < 0)
    return sign ^ negative, abs(value) - width, abs(value) + width, -width


def _cosine(sign: int, significand: int, exponent: int, bits: int) -> Bounds:
    if 2 * (exponent + significand.bit_length()) <= -bits:
        return 0, (1 << bits) - 1, 1 << bits, -bits
    quadrant, sine, cosine, width = _reduce(significand, exponent, bits)
    value = sine if quadrant & 1 else cosine
    negative = (quadrant + 1 >> 1 & 1) ^ (value < 0)
    return negative, abs(value) - width, abs(value) + width, -width


def _tangent(sign: int, significand: int, exponent: int, bits: int) -> Bounds:
    if 2 * (exponent + significand.bit_length()) <= -bits:
        first = significand << bits
        return sign, first, first + significand, exponent - bits
    quadrant, sine, cosine, width = _reduce(significand, exponent, bits)
    sign ^= (sine < 0) ^ (quadrant & 1)
    above, below = (cosine, abs(sine)) if quadrant & 1 else (abs(sine), cosine)
    if below <= width:
        return sign, 0, 0, 0  # too few bits to tell
    low = (above - width << width) // (below + width)
    high = (above + width << width) // (below - width) + 1
    return sign, low, high, -width


def _reduce(significand: int, exponent: int, bits: int) -> tuple[int, int, int, int]:
    """(quadrants taken away, sine, cosine, their width in bits) of the rest of the angle."""
    top = exponent + significand.bit_length() - 1
    width = bits - top if top < 0 else bits + 64
    angle = significand << width + exponent
    quadrants = (angle << 66) // (_PI << width) + 1 >> 1
    rest = angle - (quadrants * _PI << width >> 65)
    sine, cosine = sine_and_cosine(rest, width)
    return quadrants, sine, cosine, width


def fpatan(a: int, b: int, context: Context) -> int:
    """The angle of the point (a, b), where a is ST0: between -pi and pi."""
    kind_a, kind_b = kind(F80, a), kind(F80, b)
    if kind_a >= QUIET or kind_b >= QUIET:
        return propagate(F80, a, b, context)
    note_denormal(F80, a, context)
    note_denormal(F80, b, context)
    sign, left = b >> 79, a >> 79
    if kind_a == INFINITY and kind_b == INFINITY:
        return _eighths(sign, 3 if left else 1, context)
    if kind_b == ZERO or kind_a == INFINITY:
        return _eighths(sign, 4, context) if left else sign << 79
    if kind_a == ZERO or kind_b == INFINITY:
        return _eighths(sign, 2, context)
    return _round_between(lambda bits: _angle(a, b, bits), context)


def _eighths(sign: int, count: int, context: Context) -> int:
    """So many eighths of the full circle."""

    def bounds(bits: int) -> Bounds:
        low = count * (pi(bits) - 1)
        return sign, low, low + 2 * count, -bits - 2

    return _round_between(bounds, context)


def _angle(a: int, b: int, bits: int) -> Bounds:
    left, significand_a, exponent_a, top_a = _number(a)
    sign, significand_b, exponent_b, top_b = _number(b)
    distance = exponent_b - exponent_a
    if not left and 2 * (top_b - top_a + 1) <= -bits:
        shift = bits + 64
        ratio, remainder = divmod(significand_b << shift, significand_a)
        low = ratio - (ratio >> bits) - 1
        return sign, low, ratio + (remainder != 0), distance - shift
    width = bits + max(top_a - top_b, 0) + 2 if not left else bits + 8
    shift = width + distance
    ratio = _shift(significand_b, shift) // significand_a
    if ratio <= 1 << width:
        angle = arctangent(ratio, width)
        value = pi(width) - angle if left else angle
    else:
        angle = arctangent(_shift(significand_a, width - distance) // significand_b, width)
        quarter = pi(width) >> 1
        value = quarter + angle if left else quarter - angle
    return sign, value - 2 * width, value + 2 * width, -width


def _shift(significand: int, left: int) -> int:
    return significand << left if left >= 0 else significand >> -left
