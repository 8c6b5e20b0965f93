"""Addition, subtraction, multiplication, division, square root and fused multiply-add.

F80 rounds to the context's precision and follows x87; the other formats follow SSE.
"""

from __future__ import annotations

from math import isqrt

from trapline.processor.softfloat.context import DE, DOWN, ZE, Context
from trapline.processor.softfloat.format import (
    DENORMAL,
    F80,
    INFINITY,
    QUIET,
    ZERO,
    Format,
    kind,
    unpack,
)
from trapline.processor.softfloat.nan import (
    invalid,
    propagate,
    propagate_one,
    raise_before,
)
from trapline.processor.softfloat.rounding import round_extended, round_pack


def finish(form: Format, sign: int, exponent: int, significand: int, context: Context) -> int:
    """Round and pack a value that is not zero."""
    if form is F80:
        return round_extended(sign, exponent, significand, context, context.precision)
    return round_pack(form, sign, exponent, significand, context)


def flush(form: Format, bits: int, context: Context) -> int:
    """The operand as the operation sees it: denormals are zeros under DAZ."""
    if context.daz and form is not F80 and kind(form, bits) == DENORMAL:
        return bits & form.sign
    return bits


def note_denormal(form: Format, bits: int, context: Context) -> None:
    """DE if the operand, already flushed, is a denormal."""
    if kind(form, bits) == DENORMAL:
        context.flags |= DE


def add(form: Format, a: int, b: int, context: Context) -> int:
    """a + b."""
    return _sum(form, a, b, 0, context)


def sub(form: Format, a: int, b: int, context: Context) -> int:
    """a - b."""
    return _sum(form, a, b, form.sign, context)


def _sum(form: Format, a: int, b: int, flip: int, context: Context) -> int:
    fraction, top, one = form.fraction, form.top, form.one
    exponent_a = a >> fraction & top
    exponent_b = b >> fraction & top
    significand_a = a & form.mask | form.hidden
    significand_b = b & form.mask | form.hidden
    if not (
        0 < exponent_a < top
        and 0 < exponent_b < top
        and significand_a >= one
        and significand_b >= one
    ):
        special = _special_sum(form, a, b, flip, context)
        if special is not None:
            return special
        _, exponent_a, significand_a = unpack(form, flush(form, a, context))
        _, exponent_b, significand_b = unpack(form, flush(form, b, context))
    sign = a >> form.sign_shift
    if sign != (b ^ flip) >> form.sign_shift:
        significand_b = -significand_b
    exponent, total = _align(
        exponent_a, significand_a, exponent_b, significand_b, form.precision + 3
    )
    if total < 0:
        return finish(form, sign ^ 1, exponent, -total, context)
    if total:
        return finish(form, sign, exponent, total, context)
    if significand_b < 0 or significand_b == 0 and (a ^ b ^ flip) & form.sign:
        sign = 1 if context.rounding == DOWN else 0  # x - x, or zeros of both signs
    return sign << form.sign_shift


def _align(
    exponent_a: int, significand_a: int, exponent_b: int, significand_b: int, guard: int
) -> tuple[int, int]:
    """(exponent, sum); a summand too small to matter shrinks to one unit at the far end.

    Both significands have at most `guard` - 3 bits, and that of the far larger exponent is
    not zero.
    """
    shift = exponent_a - exponent_b
    if shift < 0:
        exponent_a, exponent_b = exponent_b, exponent_a
        significand_a, significand_b = significand_b, significand_a
        shift = -shift
    if shift <= 2 * guard:
        return exponent_b, (significand_a << shift) + significand_b
    sticky = (significand_b > 0) - (significand_b < 0)
    return exponent_a - guard, (significand_a << guard) + sticky


def _special_sum(form: Format, a: int, b: int, flip: int, context: Context) -> int | None:
    """The sum if it takes no addition; DE if there is a denormal operand."""
    a, b = flush(form, a, context), flush(form, b, context)
    kind_a, kind_b = kind(form, a), kind(form, b)
    if kind_a >= QUIET or kind_b >= QUIET:
        return propagate(form, a, b, context)
    if kind_a == INFINITY and kind_b == INFINITY and (a ^ b ^ flip) & form.sign:
        return invalid(form, context)
    if kind_a == DENORMAL or kind_b == DENORMAL:
        context.flags |= DE
    if kind_a == INFINITY:
        return a
    if kind_b == INFINITY:
        return b ^ flip
    return None


def mul(form: Format, a: int, b: int, context: Context) -> int:
    """a * b."""
    fraction, top, one = form.fraction, form.top, form.one
    exponent_a = a >> fraction & top
    exponent_b = b >> fraction & top
    significand_a = a & form.mask | form.hidden
    significand_b = b & form.mask | form.hidden
    sign = (a ^ b) >> form.sign_shift
    if not (
        0 < exponent_a < top
        and 0 < exponent_b < top
        and significand_a >= one
        and significand_b >= one
    ):
        special = _special_product(form, a, b, context)
        if special is not None:
            return special
        _, exponent_a, significand_a = unpack(form, a)
        _, exponent_b, significand_b = unpack(form, b)
    exponent = exponent_a + exponent_b - form.bias - form.precision + 1
    return finish(form, sign, exponent, significand_a * significand_b, context)


def _special_product(form: Format, a: int, b: int, context: Context) -> int | None:
    a, b = flush(form, a, context), flush(form, b, context)
    kind_a, kind_b = kind(form, a), kind(form, b)
    if kind_a >= QUIET or kind_b >= QUIET:
        return propagate(form, a, b, context)
    if kind_a + kind_b == INFINITY and ZERO in (kind_a, kind_b):
        return invalid(form, context)
    if kind_a == DENORMAL or kind_b == DENORMAL:
        context.flags |= DE
    sign = (a ^ b) & form.sign
    if kind_a == INFINITY or kind_b == INFINITY:
        return sign | form.infinity
    if kind_a == ZERO or kind_b == ZERO:
        return sign
    return None


def div(form: Format, a: int, b: int, context: Context) -> int:
    """a / b."""
    special = _special_quotient(form, a, b, context)
    if special is not None:
        return special
    sign_a, exponent_a, significand_a = unpack(form, a)
    sign_b, exponent_b, significand_b = unpack(form, b)
    shift = form.precision + 2 + significand_b.bit_length() - significand_a.bit_length()
    quotient, remainder = divmod(significand_a << shift, significand_b)
    exponent = exponent_a - exponent_b - shift + form.bias + form.precision - 1
    return finish(form, sign_a ^ sign_b, exponent, quotient | (remainder != 0), context)


def _special_quotient(form: Format, a: int, b: int, context: Context) -> int | None:
    a, b = flush(form, a, context), flush(form, b, context)
    kind_a, kind_b = kind(form, a), kind(form, b)
    if kind_a >= QUIET or kind_b >= QUIET:
        return propagate(form, a, b, context)
    if kind_a == kind_b and kind_a in (ZERO, INFINITY):
        return invalid(form, context)
    sign = (a ^ b) & form.sign
    if kind_b == ZERO and kind_a != INFINITY:
        raise_before(form, ZE, context)
        return sign | form.infinity
    if kind_a == DENORMAL or kind_b == DENORMAL:
        context.flags |= DE
    if kind_a == INFINITY:
        return sign | form.infinity
    if kind_a == ZERO or kind_b == INFINITY:
        return sign
    return None


def sqrt(form: Format, a: int, context: Context) -> int:
    """The square root; of -0 it is -0."""
    a = flush(form, a, context)
    kind_a = kind(form, a)
    if kind_a >= QUIET:
        return propagate_one(form, a, context)
    if kind_a == ZERO:
        return a
    if a & form.sign:
        return invalid(form, context)
    if kind_a == INFINITY:
        return a
    if kind_a == DENORMAL:
        context.flags |= DE
    _, exponent, significand = unpack(form, a)
    offset = form.bias + form.precision - 1
    shift = 2 * form.precision + 6 - significand.bit_length()
    shift += (exponent - offset - shift) & 1
    significand <<= shift
    root = isqrt(significand)
    sticky = root * root != significand
    exponent = (exponent - offset - shift >> 1) - 1 + offset
    return finish(form, 0, exponent, root << 1 | sticky, context)


def fma(
    form: Format,
    a: int,
    b: int,
    c: int,
    context: Context,
    *,
    negate_product: bool = False,
    negate_addend: bool = False,
) -> int:
    """a * b + c, rounded once. Not for F80.

    Of several NaNs the first in the order a, b, c comes out: it is for the caller to keep the
    order the manual gives for 132, 213 and 231.
    """
    a, b, c = flush(form, a, context), flush(form, b, context), flush(form, c, context)
    flip_product = form.sign if negate_product else 0
    addend = c ^ form.sign if negate_addend else c
    special = _special_fused(form, (a, b, c), flip_product, addend, context)
    if special is not None:
        return special
    sign_a, exponent_a, significand_a = unpack(form, a ^ flip_product)
    sign_b, exponent_b, significand_b = unpack(form, b)
    sign_c, exponent_c, significand_c = unpack(form, addend)
    sign = sign_a ^ sign_b
    product = significand_a * significand_b
    exponent = exponent_a + exponent_b - form.bias - form.precision + 1
    if product == 0:
        exponent = exponent_c
    elif significand_c == 0:
        exponent_c = exponent
    if sign != sign_c:
        significand_c = -significand_c
    exponent, total = _align(exponent, product, exponent_c, significand_c, 2 * form.precision + 3)
    if total < 0:
        return finish(form, sign ^ 1, exponent, -total, context)
    if total:
        return finish(form, sign, exponent, total, context)
    if sign != sign_c:
        sign = 1 if context.rounding == DOWN else 0
    return sign << form.sign_shift


def _special_fused(
    form: Format, operands: tuple[int, int, int], flip_product: int, addend: int, context: Context
) -> int | None:
    a, b, c = operands
    kinds = kind_a, kind_b, kind_c = kind(form, a), kind(form, b), kind(form, c)
    if max(kinds) >= QUIET:
        if max(kind_a, kind_b) < QUIET:
            return propagate(form, c, c, context)
        return propagate(form, propagate(form, a, b, context), c, context)
    sign = (a ^ b ^ flip_product) & form.sign
    infinite_product = INFINITY in (kind_a, kind_b)
    if infinite_product and ZERO in (kind_a, kind_b):
        return invalid(form, context)
    if infinite_product and kind_c == INFINITY and sign != addend & form.sign:
        return invalid(form, context)
    if DENORMAL in kinds:
        context.flags |= DE
    if infinite_product:
        return sign | form.infinity
    return addend if kind_c == INFINITY else None
