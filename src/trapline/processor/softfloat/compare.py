"""Comparison: the relation of two numbers, the predicates of CMPPS, MIN and MAX."""

from __future__ import annotations

from enum import IntEnum

from trapline.processor.softfloat.arithmetic import flush
from trapline.processor.softfloat.context import DE, IE, Context
from trapline.processor.softfloat.format import (
    DENORMAL,
    QUIET,
    SIGNALLING,
    Format,
    kind,
)
from trapline.processor.softfloat.nan import raise_before


class Relation(IntEnum):
    """How a stands to b; the value is the bit it has in a predicate's truth set."""

    EQUAL = 1
    LESS = 2
    GREATER = 4
    UNORDERED = 8


# For each predicate of VCMPPS (SDM 2, "CMPPS", table "Comparison Predicate"): the relations for
# which it is true. Predicates 0-7 are those of the SSE instructions.
_EQ, _LT, _GT, _UN = Relation.EQUAL, Relation.LESS, Relation.GREATER, Relation.UNORDERED
_TRUE_FOR = (
    _EQ,
    _LT,
    _LT | _EQ,
    _UN,
    _LT | _GT | _UN,
    _GT | _EQ | _UN,
    _GT | _UN,
    _LT | _EQ | _GT,
    _EQ | _UN,
    _LT | _UN,
    _LT | _EQ | _UN,
    0,
    _LT | _GT,
    _GT | _EQ,
    _GT,
    _LT | _EQ | _GT | _UN,
)
# Predicates that raise IE for a quiet NaN: 1, 2, 5, 6 and 9, 10, 13, 14; from 16 on the others.
_SIGNALLING = 0x99996666


def compare(form: Format, a: int, b: int, context: Context, *, signalling: bool) -> Relation:
    """The relation of a to b; with `signalling` (COMISS, FCOM) a quiet NaN raises IE as well.

    Without it (UCOMISS, FUCOM) only a signalling NaN and the unsupported patterns do.
    """
    kind_a, kind_b = kind(form, a), kind(form, b)
    if kind_a >= QUIET or kind_b >= QUIET:
        return _unordered(form, kind_a, kind_b, context, signalling)
    if kind_a == DENORMAL or kind_b == DENORMAL:
        if context.daz:
            a, b = flush(form, a, context), flush(form, b, context)
        else:
            context.flags |= DE
    key_a, key_b = _order(form, a), _order(form, b)
    if key_a == key_b:
        return Relation.EQUAL
    return Relation.LESS if key_a < key_b else Relation.GREATER


def _unordered(
    form: Format, kind_a: int, kind_b: int, context: Context, signalling: bool
) -> Relation:
    if signalling or kind_a >= SIGNALLING or kind_b >= SIGNALLING:
        raise_before(form, IE, context)
    elif form.hidden == 0:
        context.flags &= ~DE  # of an operand widened from memory
    return Relation.UNORDERED


def _order(form: Format, bits: int) -> int:
    """An integer that grows with the number."""
    magnitude = bits & ~form.sign
    if form.hidden == 0 and magnitude >> form.fraction == 0 and magnitude & form.one:
        magnitude += 1 << form.fraction  # a pseudo-denormal is the normal number it equals
    return -magnitude if bits & form.sign else magnitude


def holds(form: Format, a: int, b: int, predicate: int, context: Context) -> bool:
    """Whether a `predicate` b, for the immediate of CMPPS (0-7) or VCMPPS (0-31)."""
    signalling = bool(_SIGNALLING >> predicate & 1)
    relation = compare(form, a, b, context, signalling=signalling)
    return bool(_TRUE_FOR[predicate & 15] & relation)


def minimum(form: Format, a: int, b: int, context: Context) -> int:
    """MINSS: a if a < b, else b; so b if either is NaN (any NaN raises IE) or both are zero."""
    return _pick(form, a, b, Relation.LESS, context)


def maximum(form: Format, a: int, b: int, context: Context) -> int:
    """MAXSS: a if a > b, else b; so b if either is NaN (any NaN raises IE) or both are zero."""
    return _pick(form, a, b, Relation.GREATER, context)


def _pick(form: Format, a: int, b: int, wanted: Relation, context: Context) -> int:
    a, b = flush(form, a, context), flush(form, b, context)
    return a if compare(form, a, b, context, signalling=True) == wanted else b
