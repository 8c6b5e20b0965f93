"""The layouts of floating-point numbers as bit patterns, and what kind of thing a pattern is.

Nothing here rounds or raises an exception.
"""

from __future__ import annotations

ZERO = 0
DENORMAL = 1
NORMAL = 2
INFINITY = 3
QUIET = 4
SIGNALLING = 5
UNSUPPORTED = 6  # x87 only: unnormals, pseudo-infinities, pseudo-NaNs


class Format:
    """One layout: `sign | exponent | significand`, as constants the arithmetic can use at once.

    `precision` counts the integer bit, whether it is stored (x87) or not. A finite number is
    worth `significand * 2 ** (exponent - bias - precision + 1)`.
    """

    __slots__ = (
        "name",
        "width",
        "precision",
        "fraction",
        "top",
        "bias",
        "sign_shift",
        "sign",
        "mask",
        "hidden",
        "one",
        "infinity",
        "largest",
        "quiet",
        "indefinite",
    )

    def __init__(self, name: str, width: int, precision: int, explicit: bool = False) -> None:
        self.name = name
        self.width = width
        self.precision = precision
        self.fraction = precision if explicit else precision - 1  # where the exponent begins
        self.top = (1 << (width - 1 - self.fraction)) - 1
        self.bias = self.top >> 1
        self.sign_shift = width - 1
        self.sign = 1 << self.sign_shift
        self.mask = (1 << self.fraction) - 1
        self.one = 1 << (precision - 1)
        self.hidden = 0 if explicit else self.one
        self.infinity = self.top << self.fraction | (self.one if explicit else 0)
        self.largest = (self.top - 1) << self.fraction | self.mask
        self.quiet = 1 << (precision - 2)
        self.indefinite = self.sign | self.infinity | self.quiet

    def __repr__(self) -> str:
        return self.name


F16 = Format("F16", 16, 11)
F32 = Format("F32", 32, 24)
F64 = Format("F64", 64, 53)
F80 = Format("F80", 80, 64, explicit=True)


def kind(form: Format, bits: int) -> int:
    """ZERO .. UNSUPPORTED; the pseudo-denormals of x87 are denormals."""
    exponent = bits >> form.fraction & form.top
    significand = bits & form.mask
    if exponent == 0:
        return DENORMAL if significand else ZERO
    if form.hidden == 0 and significand < form.one:
        return UNSUPPORTED
    if exponent != form.top:
        return NORMAL
    payload = significand & (form.one - 1)
    if payload == 0:
        return INFINITY
    return QUIET if payload & form.quiet else SIGNALLING


def unpack(form: Format, bits: int) -> tuple[int, int, int]:
    """(sign, exponent, significand) of a finite number; a denormal's exponent is 1."""
    exponent = bits >> form.fraction & form.top
    significand = bits & form.mask
    if exponent:
        return bits >> form.sign_shift, exponent, significand | form.hidden
    return bits >> form.sign_shift, 1, significand
