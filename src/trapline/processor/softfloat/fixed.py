"""Elementary functions on fixed-point integers: `value` stands for `value / 2 ** bits`.

Every result is off by fewer than `bits` units, for 100 bits and more. Nothing here knows
floating point.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

_GUARD = 32


@lru_cache(maxsize=64)
def pi(bits: int) -> int:
    """Pi, off by less than one unit (Machin's formula)."""
    width = bits + _GUARD
    return 4 * (4 * _arctangent_of_inverse(5, width) - _arctangent_of_inverse(239, width)) >> _GUARD


@lru_cache(maxsize=64)
def ln2(bits: int) -> int:
    """The natural logarithm of 2, off by less than one unit."""
    width = bits + _GUARD
    total = 18 * _inverse_hyperbolic(26, width)
    total += 8 * _inverse_hyperbolic(8749, width) - 2 * _inverse_hyperbolic(4801, width)
    return total >> _GUARD


def _arctangent_of_inverse(number: int, bits: int) -> int:
    power = (1 << bits) // number
    total, divisor = power, 1
    while power:
        power //= -number * number
        divisor += 2
        total += power // divisor
    return total


def _inverse_hyperbolic(number: int, bits: int) -> int:
    """artanh(1 / number)."""
    power = (1 << bits) // number
    total, divisor = power, 1
    while power:
        power //= number * number
        divisor += 2
        total += power // divisor
    return total


def sine_and_cosine(value: int, bits: int) -> tuple[int, int]:
    """For values between minus one and one."""
    sine = cosine = degree = 0
    term = 1 << bits
    while term not in (0, -1):
        if degree & 1:
            sine += term
        else:
            cosine += term
        degree += 1
        term = (term * value >> bits) // (degree if degree & 1 else -degree)
    return sine, cosine


def exponential_minus_one(value: int, bits: int) -> int:
    """e ** value - 1, for values between minus one and one."""
    total = term = value
    degree = 1
    while term not in (0, -1):
        degree += 1
        term = (term * value >> bits) // degree
        total += term
    return total


def logarithm(numerator: int, denominator: int, bits: int) -> int:
    """The natural logarithm of 1 + numerator / denominator, for a ratio between -1/2 and 1/2."""
    power = (numerator << bits) // (2 * denominator + numerator)
    square = power * power >> bits
    total, divisor = power, 1
    while power not in (0, -1):
        power = power * square >> bits
        divisor += 2
        total += power // divisor
    return 2 * total


def arctangent(value: int, bits: int) -> int:
    """For values between zero and one."""
    halvings = 3
    one = 1 << bits
    for _ in range(halvings):
        value = (value << bits) // (one + isqrt((one << bits) + value * value))
    square = value * value >> bits
    total = power = value
    divisor = 1
    while power not in (0, -1):
        power = -(power * square >> bits)
        divisor += 2
        total += power // divisor
    return total << halvings
