"""SSE arithmetic, comparison and conversion on softfloat, with MXCSR's masks and sticky flags.

One primitive is one instruction: all its lanes run in one context, which is settled at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trapline.arch.exception import Vector
from trapline.arch.registers import CR4_OSXMMEXCPT, FSW_TOP, MXCSR_MASK
from trapline.processor.fault import Fault
from trapline.processor.interp.primitives import primitive
from trapline.processor.interp.sse_float_estimate import reciprocal, reciprocal_root
from trapline.processor.interp.vector import join, split
from trapline.processor.softfloat import (
    F32,
    F64,
    Context,
    Format,
    Relation,
    add,
    compare,
    convert,
    div,
    from_integer,
    holds,
    maximum,
    minimum,
    mul,
    round_by_immediate,
    sqrt,
    sub,
    to_integer,
)

if TYPE_CHECKING:
    from trapline.processor.language import Primitive
    from trapline.processor.state import State

_Lanes = list[int]
_Operation = Callable[[Format, Context, list[_Lanes], int], _Lanes]
_FORMATS = {"s": F32, "d": F64}


def settle(state: State, context: Context) -> None:
    """Let the sticky flags be seen; raise what is not masked."""
    unmasked = context.settle()
    state.mxcsr |= context.flags
    if unmasked:
        # SDM 3A, "SIMD Floating-Point Exception (#XM)"
        raise Fault(Vector.XM if state.cr4 & CR4_OSXMMEXCPT else Vector.UD)


def _by_lane(operation: Callable[[Format, int, int, Context], int]) -> _Operation:
    return lambda form, context, vectors, immediate: [
        operation(form, a, b, context) for a, b in zip(*vectors, strict=True)
    ]


def _compared(form: Format, context: Context, vectors: list[_Lanes], predicate: int) -> _Lanes:
    pairs = zip(*vectors, strict=True)
    return [-holds(form, a, b, predicate & 7, context) for a, b in pairs]


def _rounded(form: Format, context: Context, vectors: list[_Lanes], immediate: int) -> _Lanes:
    return [round_by_immediate(form, a, immediate, context) for a in vectors[0]]


def _alternating(form: Format, context: Context, vectors: list[_Lanes], immediate: int) -> _Lanes:
    pairs = enumerate(zip(*vectors, strict=True))
    return [(add if i & 1 else sub)(form, a, b, context) for i, (a, b) in pairs]


def _pairwise(operation: Callable[[Format, int, int, Context], int]) -> _Operation:
    def combine(form: Format, context: Context, vectors: list[_Lanes], immediate: int) -> _Lanes:
        lanes = vectors[0] + vectors[1]
        pairs = zip(lanes[::2], lanes[1::2], strict=True)
        return [operation(form, a, b, context) for a, b in pairs]

    return combine


def _dot(state: State, form: Format, vectors: list[_Lanes], immediate: int) -> _Lanes:
    """DPPS, DPPD: the products that bits 7:4 choose, summed by pairs, to where bits 3:0 say.

    Each level is settled by itself: an unmasked exception there keeps the next from being tried.
    """
    context = Context.from_mxcsr(state.mxcsr)
    lanes = [
        mul(form, a, b, context) if immediate >> 4 + i & 1 else 0
        for i, (a, b) in enumerate(zip(*vectors, strict=True))
    ]
    count = len(lanes)
    settle(state, context)
    while len(lanes) > 1:
        context = Context.from_mxcsr(state.mxcsr)
        lanes = _pairwise(add)(form, context, [lanes, []], 0)
        settle(state, context)
    return [lanes[0] if immediate >> i & 1 else 0 for i in range(count)]


_OPERATIONS: dict[str, _Operation] = {
    "add": _by_lane(add),
    "sub": _by_lane(sub),
    "mul": _by_lane(mul),
    "div": _by_lane(div),
    "min": _by_lane(minimum),
    "max": _by_lane(maximum),
    "sqrt": lambda form, context, vectors, _: [sqrt(form, a, context) for a in vectors[0]],
    "rcp": lambda form, context, vectors, _: [reciprocal(a) for a in vectors[0]],
    "rsqrt": lambda form, context, vectors, _: [reciprocal_root(a) for a in vectors[0]],
    "round": _rounded,
    "cmp": _compared,
    "addsub": _alternating,
    "hadd": _pairwise(add),
    "hsub": _pairwise(sub),
}


_UNARY = frozenset(("sqrt", "rcp", "rsqrt", "round"))


@primitive("float")
def _float(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(operation, kind, immediate): what the instruction `operation` + `kind` leaves in its
    destination; kind is ss, sd, ps or pd.

    args: the destination (not if it is only written) and the source, of a scalar just its lane."""
    operation, kind, immediate = effect.attributes
    form = _FORMATS[kind[1]]
    width = form.width if kind[0] == "s" else 128
    vectors = [split(word & (1 << width) - 1, form.width, width) for word in words]
    if operation in _UNARY:
        vectors = vectors[-1:]
    if operation == "dp":
        return (join(_dot(state, form, vectors, immediate), form.width),)
    context = Context.from_mxcsr(state.mxcsr)
    lanes = _OPERATIONS[operation](form, context, vectors, immediate)
    settle(state, context)
    result = join(lanes, form.width)
    return (words[0] >> width << width | result,) if kind[0] == "s" else (result,)


_ORDER = {
    Relation.UNORDERED: (1, 1, 1),
    Relation.GREATER: (0, 0, 0),
    Relation.LESS: (0, 0, 1),
    Relation.EQUAL: (1, 0, 0),
}


@primitive("float_order")
def _float_order(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(operation, kind): COMISS and the like; gives ZF, PF, CF."""
    operation, kind = effect.attributes
    context = Context.from_mxcsr(state.mxcsr)
    form, signalling = _FORMATS[kind[1]], operation == "comi"
    relation = compare(form, words[0], words[1], context, signalling=signalling)
    settle(state, context)
    return _ORDER[relation]


def _converted(source: str, target: str, truncate: bool, word: int, context: Context) -> int:
    if source in _FORMATS:
        if target in _FORMATS:
            return convert(_FORMATS[source], _FORMATS[target], word, context)
        return to_integer(_FORMATS[source], word, int(target), context, truncate=truncate)
    return from_integer(_FORMATS[target], word, int(source), context)


@primitive("float_convert")
def _float_convert(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(source, target, truncate, to_mmx): each lane from one kind to another; s, d or an
    integer's width.  The result has the lanes that fit it."""
    source, target, truncate, to_mmx = effect.attributes
    context = Context.from_mxcsr(state.mxcsr)
    size = {"s": 32, "d": 64}
    width = size.get(source) or int(source)
    lanes = [
        _converted(source, target, truncate, word, context)
        for word in split(words[0], width, effect.args[0].width)
    ]
    if to_mmx and context.flags & ~context.masks:
        # The x87 state is MMX's by the time of #XM (measured on AMD's; the manuals do not say).
        state.fsw &= ~FSW_TOP
        state.ftw = 0xFF
    settle(state, context)
    return (join(lanes, size.get(target) or int(target)),)


@primitive("mxcsr_read")
def _mxcsr_read(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """MXCSR with the flags gathered so far."""
    return (state.mxcsr & MXCSR_MASK,)


@primitive("mxcsr_load")
def _mxcsr_load(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """The state's MXCSR is about to become this: nothing to do for an engine without one."""
    return ()
