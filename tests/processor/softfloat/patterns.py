"""Operands worth trying: every special value, and random ones that lie close to an edge."""

from __future__ import annotations

import os
import random

from trapline.processor.softfloat import F80, Format

DEEP = int(os.environ.get("TRAPLINE_DEEP") or 0)


def count(cases: int) -> int:
    """How many cases to run: TRAPLINE_DEEP=1000 runs a thousand times as many."""
    return cases * max(DEEP, 1)


def specials(form: Format) -> list[int]:
    """Zeros, denormals, extremes, infinities, NaNs with payloads, and x87's odd patterns."""
    one = form.bias << form.fraction | (form.one if form is F80 else 0)
    normal = 1 << form.fraction | (form.one if form is F80 else 0)
    magnitudes = [0, 1, 2, 3, form.one - 1, form.one - 2, form.one >> 1, normal, normal + 1]
    magnitudes += [one, one - 1, one + 1, one + (1 << form.fraction), form.largest]
    magnitudes += [form.largest - 1, form.infinity, form.infinity | form.quiet]
    magnitudes += [form.infinity | payload for payload in (1, 5, form.quiet - 1, form.quiet | 7)]
    magnitudes += [form.infinity | form.one - 1]
    if form is F80:
        pseudo = [1 << 63, 1 << 63 | 1, (1 << 64) - 1]  # denormals
        pseudo += [1 << 64, 5 << 64 | 123, 0x3FFF << 64 | 1 << 62, 0x7FFE << 64]  # unnormals
        pseudo += [0x7FFF << 64, 0x7FFF << 64 | 1, 0x7FFF << 64 | 1 << 62 | 9]
        magnitudes += pseudo
    return magnitudes + [magnitude | form.sign for magnitude in magnitudes]


class Source:
    """A stream of operands of one format."""

    def __init__(self, form: Format, seed: int = 1) -> None:
        self.form = form
        self.random = random.Random(seed)
        self.specials = specials(form)

    def one(self) -> int:
        """Any pattern."""
        choice = self.random.random()
        if choice < 0.15:
            return self.random.choice(self.specials)
        if choice < 0.35:
            return self._build(self.random.randint(0, self.form.top))
        if choice < 0.45:
            return self._build(self.random.choice((0, 0, 1, 2)))
        if choice < 0.5:
            return self._build(self.form.top - self.random.randint(0, 2))
        reach = min(70, self.form.bias)
        return self._build(self.form.bias + self.random.randint(-reach, reach))

    def pair(self) -> tuple[int, int]:
        """Two operands, often with exponents that make the operation's edges likely."""
        a = self.one()
        if self.random.random() < 0.5:
            return a, self.one()
        form = self.form
        exponent = a >> form.fraction & form.top
        near = self.random.randint(-form.precision - 3, form.precision + 3)
        choice = self.random.randint(0, 3)
        if choice == 0:
            exponent += near
        elif choice == 1:
            exponent = (
                2 * form.bias + form.bias - exponent + near
            )  # product near the largest numbers
        elif choice == 2:
            exponent = form.bias - exponent + near  # product near the smallest numbers
        else:
            exponent = form.bias + exponent + near  # quotient near the smallest numbers
        return a, self._build(min(max(exponent, 0), form.top))

    def _build(self, exponent: int) -> int:
        form = self.form
        significand = self._significand()
        if form is F80:
            # One in thirty breaks the rule of the integer bit.
            proper = (exponent > 0) ^ (self.random.random() < 0.03)
            significand |= form.one if proper else 0
        return (
            self.random.getrandbits(1) << form.sign_shift | exponent << form.fraction | significand
        )

    def _significand(self) -> int:
        """The bits below the integer bit: random, few, or a long run of equal bits."""
        width = self.form.precision - 1
        bits = self.random.getrandbits(width)
        choice = self.random.randint(0, 5)
        if choice == 0:
            return bits & -1 << self.random.randint(0, width) & (1 << width) - 1
        if choice == 1:
            return bits >> self.random.randint(0, width)
        if choice == 2:
            return (1 << width) - 1 ^ bits >> self.random.randint(0, width)
        if choice == 3:
            position = self.random.randint(0, width - 1)
            return (1 << position) + self.random.choice((-1, 0, 1)) & (1 << width) - 1
        return bits
