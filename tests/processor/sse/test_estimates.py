"""RCPSS and RSQRTSS of the reference engine: within the manuals' bound everywhere."""

from __future__ import annotations

import struct
from fractions import Fraction
from random import Random

import pytest

from trapline.processor.interp.sse_float_estimate import reciprocal, reciprocal_root

# SDM 2B, RCPPS and RSQRTPS: |relative error| <= 1.5 * 2**-12.
BOUND = Fraction(3, 2 << 12)
INFINITY, QUIET = 0x7F800000, 0x400000
SIGN = 1 << 31
SPECIAL = [
    (0, INFINITY), (1, INFINITY), (0x7FFFFF, INFINITY), (0x7F800001, 0x7FC00001),
    (0x7FC12345, 0x7FC12345), (SIGN | 0x7F812345, SIGN | 0x7FC12345),
]  # fmt: skip


def exact(bits: int) -> Fraction:
    return Fraction(*struct.unpack("<f", bits.to_bytes(4, "little"))[0].as_integer_ratio())


def operands() -> list[int]:
    """Both ends of every interval of 12 bits, with exponents of both parities; others anywhere."""
    source = Random(53)
    ends = [
        exponent << 23 | fraction << 11 | low
        for exponent in (127, 128)
        for fraction in range(1 << 12)
        for low in (0, 0x7FF)
    ]
    return ends + [source.randrange(0x800000, INFINITY) for _ in range(5000)]


def test_reciprocals_are_near_enough() -> None:
    for bits in operands():
        estimate = reciprocal(bits)
        if bits >> 23 >= 253:
            assert estimate == 0  # what would be denormal
            continue
        assert abs(exact(estimate) * exact(bits) - 1) <= BOUND, hex(bits)
        assert reciprocal(bits | SIGN) == estimate | SIGN


def test_reciprocal_roots_are_near_enough() -> None:
    for bits in operands():
        estimate = exact(reciprocal_root(bits))
        # |e * sqrt(x) - 1| <= b is (1 - b)**2 <= e**2 * x <= (1 + b)**2.
        square = estimate * estimate * exact(bits)
        assert (1 - BOUND) ** 2 <= square <= (1 + BOUND) ** 2, hex(bits)


@pytest.mark.parametrize("bits, wanted", SPECIAL)
def test_zeros_denormals_and_nans(bits: int, wanted: int) -> None:
    assert reciprocal(bits) == wanted
    assert reciprocal_root(bits) == wanted
    assert reciprocal(bits | SIGN) == wanted | SIGN


def test_infinities_and_negative_numbers() -> None:
    assert (reciprocal(INFINITY), reciprocal(SIGN | INFINITY)) == (0, SIGN)
    assert reciprocal_root(INFINITY) == 0
    assert reciprocal_root(SIGN) == SIGN | INFINITY
    for bits in (SIGN | INFINITY, SIGN | 0x3F800000, SIGN | 0x800000):
        assert reciprocal_root(bits) == SIGN | INFINITY | QUIET
