"""The fixed-point functions keep the error bounds that the rounding of the results relies on."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from trapline.processor.softfloat.fixed import (
    arctangent,
    exponential_minus_one,
    ln2,
    logarithm,
    pi,
    sine_and_cosine,
)

EXTRA = 128

FUNCTIONS: dict[str, Callable[[int, int], int]] = {
    "sine": lambda value, bits: sine_and_cosine(value, bits)[0],
    "cosine": lambda value, bits: sine_and_cosine(value, bits)[1],
    "exponential": exponential_minus_one,
    "logarithm": lambda value, bits: logarithm(value // 2, 1 << bits, bits),
    "arctangent": lambda value, bits: arctangent(abs(value), bits),
}


def test_constants_to_128_bits() -> None:
    """The integers below are the constants' first bits, from the literature."""
    assert pi(128) == 0x3243F6A8885A308D313198A2E03707344
    assert ln2(128) == 0xB17217F7D1CF79ABC9E3B39803F2F6AF


@pytest.mark.parametrize("constant", [pi, ln2], ids=["pi", "ln2"])
@pytest.mark.parametrize("bits", [100, 160, 229, 1000])
def test_constant_is_off_by_less_than_one_unit(constant: Callable[[int], int], bits: int) -> None:
    assert abs((constant(bits) << EXTRA) - constant(bits + EXTRA)) < 1 << EXTRA


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("bits", [100, 160, 229, 1000])
def test_function_is_off_by_fewer_units_than_bits(name: str, bits: int) -> None:
    """Compared with itself at 128 bits more."""
    function = FUNCTIONS[name]
    source = random.Random(bits)
    for _ in range(200):
        value = source.getrandbits(bits) >> source.randint(0, bits)
        value *= source.choice((-1, 1))
        error = (function(value, bits) << EXTRA) - function(value << EXTRA, bits + EXTRA)
        assert abs(error) < bits << EXTRA
