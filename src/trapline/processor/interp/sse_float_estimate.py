"""RCPPS and RSQRTPS: estimates within the manuals' bound, 1.5 * 2**-12.

Each processor has tables of its own.  Here the operand's fraction is cut to twelve bits and the
middle of that interval taken; the result has twelve bits too.  Native code asks the host.
"""

from __future__ import annotations

from math import isqrt

from trapline.processor.softfloat import F32
from trapline.processor.softfloat.format import DENORMAL, QUIET, kind

_HALF = 12  # result and operand: bits of the fraction that count
_UNIT = 1 << _HALF


def _special(bits: int) -> int | None:
    """Zeros, denormals, which count as zeros, and NaNs."""
    operand = kind(F32, bits)
    if operand >= QUIET:
        return bits | F32.quiet
    if operand <= DENORMAL:
        return bits & F32.sign | F32.infinity
    return None


def _middle(bits: int) -> int:
    """The significand as an odd number of 2**-13."""
    return 2 * (_UNIT | bits >> 11 & _UNIT - 1) + 1


def _packed(sign: int, exponent: int, estimate: int) -> int:
    """`estimate` * 2**-13, from a half up to one, in F32; what would be denormal is zero."""
    if exponent <= 0:
        return sign
    fraction = min(estimate, 2 * _UNIT - 1) - _UNIT
    return sign | exponent << F32.fraction | fraction << 11


def reciprocal(bits: int) -> int:
    """1 / x, roughly; no exception is raised and MXCSR is not looked at."""
    special = _special(bits)
    if special is not None:
        return special
    scaled = 4 * _UNIT * _UNIT
    middle = _middle(bits)
    estimate = (2 * scaled + middle) // (2 * middle)
    exponent = bits >> F32.fraction & F32.top
    return _packed(bits & F32.sign, 2 * F32.bias - 1 - exponent, estimate)


def reciprocal_root(bits: int) -> int:
    """1 / sqrt(x), roughly; a negative number gives the default NaN, silently."""
    special = _special(bits)
    if special is not None:
        return special
    if bits & F32.sign:
        return F32.indefinite
    exponent = bits >> F32.fraction & F32.top
    if exponent == F32.top:
        return 0
    power = exponent - F32.bias
    radicand = _middle(bits) << (power & 1)
    estimate = isqrt(4 * (2 * _UNIT) ** 3 // radicand) + 1 >> 1
    return _packed(0, F32.bias - 1 - (power >> 1), estimate)
