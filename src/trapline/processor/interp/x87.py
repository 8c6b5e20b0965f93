"""x87 on softfloat: one primitive is one instruction's arithmetic, under its control word.

The register stack, the tags and the status word are the descriptions' business; what comes back
here last is always the exceptions and condition codes, as bits of the status word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trapline.arch.exception import Vector
from trapline.arch.registers import (
    CR0_EM,
    CR0_MP,
    CR0_TS,
    FSW_C0,
    FSW_C1,
    FSW_C2,
    FSW_C3,
    FSW_ES,
)
from trapline.processor.fault import Fault
from trapline.processor.interp.primitives import primitive
from trapline.processor.softfloat import (
    BEFORE,
    F32,
    F64,
    F80,
    Context,
    Relation,
    add,
    compare,
    constant,
    convert,
    div,
    f2xm1,
    fbld,
    fbstp,
    fcos,
    fpatan,
    fprem,
    fprem1,
    fptan,
    from_integer,
    fscale,
    fsin,
    fsincos,
    fxam,
    fxtract,
    fyl2x,
    fyl2xp1,
    mul,
    round_to_integral,
    sqrt,
    sub,
    to_integer,
    widen,
)

if TYPE_CHECKING:
    from trapline.processor.language import Primitive
    from trapline.processor.state import State

_FORMATS = {"f32": F32, "f64": F64}
_Two = Callable[[int, int, Context], int]
# (results, condition codes) of an operation: (context, attributes, words)
_Answer = tuple[tuple[int, ...], int]
_Operation = Callable[[Context, Sequence[str], Sequence[int]], _Answer]


# -- readiness -------------------------------------------------------------------------------------


@primitive("x87_ready")
def _ready(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(waits,): #NM; #MF if the instruction waits for pending exceptions."""
    if state.cr0 & (CR0_EM | CR0_TS):
        raise Fault(Vector.NM)
    if effect.attributes[0]:
        _raise_pending(state)
    return ()


@primitive("x87_wait")
def _wait(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """SDM 2, WAIT: EM does not matter, and TS only with MP."""
    if state.cr0 & CR0_MP and state.cr0 & CR0_TS:
        raise Fault(Vector.NM)
    _raise_pending(state)
    return ()


def _raise_pending(state: State) -> None:
    if state.fsw & FSW_ES:
        raise Fault(Vector.MF)


@primitive("x87_rare")
def _rare(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """A condition that native code does not go on with; here it is only a condition."""
    return words


@primitive("x87_unmasked")
def _unmasked(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """The exceptions that are raised and not masked."""
    flags, masks = words
    return (flags & ~masks,)


@primitive("x87_control")
def _control(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """The state's control word is about to become this: nothing to do for an engine without
    one."""
    return ()


@primitive("x87_long_access")
def _long_access(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """An access longer than native code's bounce buffer follows, so native code has none."""
    return ()


# -- arithmetic ------------------------------------------------------------------------------------


@primitive("x87")
def _x87(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(operation, *attributes): args are the control word and the operation's."""
    control, *args = words
    operation, *attributes = effect.attributes
    context = Context.from_control_word(control)
    results, conditions = _OPERATIONS[operation](context, attributes, args)
    stopped = context.settle() & BEFORE
    if context.rounded_up and not stopped:
        conditions |= FSW_C1
    return (*results, context.flags | conditions)


def _second(kind: str, word: int, context: Context) -> int:
    """The second operand, in memory maybe, as an 80-bit number."""
    if kind == "f80":
        return word
    if kind in _FORMATS:
        return widen(_FORMATS[kind], word, context)
    return from_integer(F80, word, int(kind[1:]), context)


_TWO: dict[str, _Two] = {
    "add": lambda a, b, context: add(F80, a, b, context),
    "mul": lambda a, b, context: mul(F80, a, b, context),
    "sub": lambda a, b, context: sub(F80, a, b, context),
    "subr": lambda a, b, context: sub(F80, b, a, context),
    "div": lambda a, b, context: div(F80, a, b, context),
    "divr": lambda a, b, context: div(F80, b, a, context),
    "scale": fscale,
    "yl2x": fyl2x,
    "yl2xp1": fyl2xp1,
    "patan": fpatan,
}


def _two(context: Context, attributes: Sequence[str], words: Sequence[int]) -> _Answer:
    operation, kind = attributes
    right = _second(kind, words[1], context)
    return (_TWO[operation](words[0], right, context),), 0


_ONE: dict[str, Callable[[int, Context], int | None]] = {
    "sqrt": lambda a, context: sqrt(F80, a, context),
    "rndint": lambda a, context: round_to_integral(F80, a, context),
    "2xm1": f2xm1,
    "sin": fsin,
    "cos": fcos,
}


def _one(context: Context, attributes: Sequence[str], words: Sequence[int]) -> _Answer:
    result = _ONE[attributes[0]](words[0], context)
    return ((words[0],), FSW_C2) if result is None else ((result,), 0)


def _remainder(context: Context, attributes: Sequence[str], words: Sequence[int]) -> _Answer:
    found = (fprem1 if attributes[0] == "prem1" else fprem)(words[0], words[1], context)
    if found.partial:
        return (found.result,), FSW_C2
    quotient = found.quotient
    return (found.result,), (
        FSW_C0 * (quotient >> 2 & 1) | FSW_C3 * (quotient >> 1 & 1) | FSW_C1 * (quotient & 1)
    )


def _pair(context: Context, attributes: Sequence[str], words: Sequence[int]) -> _Answer:
    """ST(0)'s new value, and what is pushed."""
    if attributes[0] == "xtract":
        significand, exponent = fxtract(words[0], context)
        return (exponent, significand), 0
    found = (fptan if attributes[0] == "ptan" else fsincos)(words[0], context)
    return ((words[0], 0), FSW_C2) if found is None else (found, 0)


def _load(context: Context, attributes: Sequence[str], words: Sequence[int]) -> _Answer:
    kind, word = attributes[0], words[0]
    if kind == "bcd":
        return (fbld(word),), 0
    if kind in _FORMATS:
        return (convert(_FORMATS[kind], F80, word, context),), 0
    return (from_integer(F80, word, int(kind[1:]), context),), 0


def _store(context: Context, attributes: Sequence[str], words: Sequence[int]) -> _Answer:
    """`kind` i: rounded to an integer; t: cut off."""
    kind, number = attributes[0], words[0]
    if kind == "bcd":
        return (fbstp(number, context),), 0
    if kind in _FORMATS:
        return (convert(F80, _FORMATS[kind], number, context),), 0
    width, truncate = int(kind[1:]), kind[0] == "t"
    return (to_integer(F80, number, width, context, truncate=truncate),), 0


_CODES = {
    Relation.UNORDERED: FSW_C0 | FSW_C2 | FSW_C3,
    Relation.GREATER: 0,
    Relation.LESS: FSW_C0,
    Relation.EQUAL: FSW_C3,
}


def _compare(context: Context, attributes: Sequence[str], words: Sequence[int]) -> _Answer:
    kind, quiet = attributes
    right = _second(kind, words[1], context)
    return (), _CODES[compare(F80, words[0], right, context, signalling=not quiet)]


def _examine(context: Context, attributes: Sequence[str], words: Sequence[int]) -> _Answer:
    code = fxam(words[0])  # C3, C2, C1, C0
    return (), FSW_C3 * (code >> 3) | (code & 7) << 8


def _constant(context: Context, attributes: Sequence[str], words: Sequence[int]) -> _Answer:
    return (constant(attributes[0], context),), 0


_OPERATIONS: dict[str, _Operation] = {
    "two": _two,
    "one": _one,
    "remainder": _remainder,
    "pair": _pair,
    "load": _load,
    "store": _store,
    "compare": _compare,
    "examine": _examine,
    "constant": _constant,
}
