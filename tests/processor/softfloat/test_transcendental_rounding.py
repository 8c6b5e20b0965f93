"""The transcendental instructions against plain series in 200 digits: correctly rounded.

What is expected is computed and rounded here without anything of softfloat.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Context as Precision
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest

from tests.processor.softfloat.patterns import count
from trapline.processor.softfloat import (
    PE,
    Context,
    f2xm1,
    fcos,
    fpatan,
    fptan,
    fsin,
    fyl2x,
    fyl2xp1,
)

DIGITS = 200
PI_66 = Fraction(0x3243F6A8885A308D3, 1 << 64)

NEAREST, DOWN, UP, ZERO = range(4)


def fraction_of(bits: int) -> Fraction:
    sign = -1 if bits >> 79 else 1
    exponent = max(bits >> 64 & 0x7FFF, 1) - 16383 - 63
    return sign * (bits & (1 << 64) - 1) * Fraction(2) ** exponent


def exact(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def rounded(number: Decimal, rounding: int) -> int:
    """The F80 of a number that is not zero and has no exact one; only for the normal range."""
    value = abs(Fraction(number))
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    if value < Fraction(2) ** exponent:
        exponent -= 1
    scaled = value / Fraction(2) ** (exponent - 63)
    whole = scaled.numerator // scaled.denominator
    negative = number < 0
    up = {
        NEAREST: scaled - whole > Fraction(1, 2),
        DOWN: negative,
        UP: not negative,
        ZERO: False,
    }[rounding]
    whole += up
    if whole == 1 << 64:
        whole, exponent = whole >> 1, exponent + 1
    return negative << 79 | exponent + 16383 << 64 | whole


def sine(angle: Decimal) -> Decimal:
    total = term = angle
    degree = 1
    while abs(term) > abs(angle).scaleb(-DIGITS):
        degree += 2
        term *= -angle * angle / (degree * (degree - 1))
        total += term
    return total


def cosine(angle: Decimal) -> Decimal:
    total = term = Decimal(1)
    degree = 0
    while abs(term) > Decimal(1).scaleb(-DIGITS):
        degree += 2
        term *= -angle * angle / (degree * (degree - 1))
        total += term
    return total


def arctangent(ratio: Decimal) -> Decimal:
    """Euler's series, which converges for any ratio up to one."""
    square = ratio * ratio / (1 + ratio * ratio)
    total = term = ratio / (1 + ratio * ratio)
    degree = 0
    while abs(term) > abs(ratio).scaleb(-DIGITS):
        degree += 1
        term *= square * 2 * degree / (2 * degree + 1)
        total += term
    return total


def pi() -> Decimal:
    return 4 * (4 * arctangent(Decimal(1) / 5) - arctangent(Decimal(1) / 239))


def angle_of(y: Fraction, x: Fraction) -> Decimal:
    if abs(y) <= abs(x):
        angle = arctangent(exact(abs(y) / abs(x)))
    else:
        angle = pi() / 2 - arctangent(exact(abs(x) / abs(y)))
    if x < 0:
        angle = pi() - angle
    return -angle if y < 0 else angle


def reduced(angle: Fraction) -> tuple[int, Decimal]:
    """(quadrant, rest) of an angle by the processor's pi."""
    quadrant = round(angle / (PI_66 / 2))
    return quadrant & 3, exact(angle - quadrant * (PI_66 / 2))


def sine_of(angle: Fraction) -> Decimal:
    quadrant, rest = reduced(angle)
    return [sine, cosine, lambda r: -sine(r), lambda r: -cosine(r)][quadrant](rest)


def cosine_of(angle: Fraction) -> Decimal:
    quadrant, rest = reduced(angle)
    return [cosine, lambda r: -sine(r), lambda r: -cosine(r), sine][quadrant](rest)


def power_minus_one(a: Fraction) -> Decimal:
    return (exact(a) * Decimal(2).ln()).exp() - 1


def logarithm(a: Fraction) -> Decimal:
    return exact(a).ln() / Decimal(2).ln()


Case = tuple[Callable[[int, int, Context], int | None], Callable[[Fraction, Fraction], Decimal]]

CASES: dict[str, tuple[Case, tuple[int, int], bool]] = {
    # name: ((ours, series), exponents of a, whether a may be negative)
    "f2xm1": ((lambda a, b, c: f2xm1(a, c), lambda a, b: power_minus_one(a)), (-70, -1), True),
    "fyl2x": ((fyl2x, lambda a, b: exact(b) * logarithm(a)), (-40, 40), False),
    "fyl2x-near-one": ((fyl2x, lambda a, b: exact(b) * logarithm(a)), (0, 0), False),
    "fyl2xp1": ((fyl2xp1, lambda a, b: exact(b) * logarithm(1 + a)), (-200, -2), True),
    "fyl2xp1-large": ((fyl2xp1, lambda a, b: exact(b) * logarithm(1 + a)), (-2, 80), False),
    "fsin": ((lambda a, b, c: fsin(a, c), lambda a, b: sine_of(a)), (-90, 62), True),
    "fcos": ((lambda a, b, c: fcos(a, c), lambda a, b: cosine_of(a)), (-90, 62), True),
    "fptan": (
        (lambda a, b, c: (fptan(a, c) or (None,))[0], lambda a, b: sine_of(a) / cosine_of(a)),
        (-90, 62),
        True,
    ),
    "fpatan": ((fpatan, lambda a, b: angle_of(b, a)), (-50, 50), True),
}


@pytest.mark.parametrize("name", CASES)
def test_result_is_the_series_correctly_rounded(name: str) -> None:
    (ours, series), (low, high), signed = CASES[name]
    source = random.Random(name)
    for _ in range(count(60)):
        significand = source.getrandbits(63) | 1 << 63
        if name == "fyl2x-near-one":
            significand = 1 << 63 | source.getrandbits(63) >> source.randint(0, 62) | 1
        sign = source.getrandbits(1) << 79 if signed else 0
        a = sign | 16383 + source.randint(low, high) << 64 | significand
        b = source.getrandbits(1) << 79 | 16383 + source.randint(-50, 50) << 64
        b |= 1 << 63 | source.getrandbits(63)
        with localcontext(Precision(prec=2 * DIGITS)):
            number = series(fraction_of(a), fraction_of(b))
        for rounding in range(4):
            context = Context(rounding)
            assert ours(a, b, context) == rounded(number, rounding), f"{a:#x} {b:#x} {rounding}"
            assert context.flags == PE
