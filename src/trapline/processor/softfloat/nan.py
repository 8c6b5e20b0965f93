"""Which NaN comes out when NaNs, or invalid operands, go in: the rules of SSE and those of x87.

F80 follows x87, every other format SSE.
"""

from __future__ import annotations

from trapline.processor.softfloat.context import DE, IE, Context
from trapline.processor.softfloat.format import F80, QUIET, SIGNALLING, UNSUPPORTED, Format, kind


def invalid(form: Format, context: Context) -> int:
    """The masked answer to an invalid operation: the default NaN."""
    raise_before(form, IE, context)
    return form.indefinite


def raise_before(form: Format, exception: int, context: Context) -> None:
    """IE or ZE, which on x87 leave no DE: FADD m32 and the like have widened by then."""
    context.flags |= exception
    if form is F80:
        context.flags &= ~DE


def propagate(form: Format, a: int, b: int, context: Context) -> int:
    """The result of an operation of which at least one operand is NaN or unsupported."""
    kind_a, kind_b = kind(form, a), kind(form, b)
    if form is F80:
        context.flags &= ~DE
    if kind_a == UNSUPPORTED or kind_b == UNSUPPORTED:
        return invalid(form, context)
    if kind_a == SIGNALLING or kind_b == SIGNALLING:
        context.flags |= IE
    if kind_b < QUIET:
        return a | form.quiet
    if kind_a < QUIET:
        return b | form.quiet
    if form is F80 and _second_wins(a, kind_a, b, kind_b):
        return b | form.quiet
    return a | form.quiet


def _second_wins(a: int, kind_a: int, b: int, kind_b: int) -> bool:
    """Of two x87 NaNs: the quiet one, else the larger significand, else the positive one."""
    if kind_a != kind_b:
        return kind_b == QUIET
    significand_a, significand_b = a & F80.mask, b & F80.mask
    if significand_a != significand_b:
        return significand_b > significand_a
    return b < a


def propagate_one(form: Format, bits: int, context: Context) -> int:
    """The result of an operation on one operand, which is NaN or unsupported."""
    operand = kind(form, bits)
    if operand == UNSUPPORTED:
        return invalid(form, context)
    if operand == SIGNALLING:
        raise_before(form, IE, context)
    return bits | form.quiet
