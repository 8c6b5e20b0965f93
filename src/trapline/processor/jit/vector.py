"""Integer vectors as LLVM vectors; see interp.vector for what each operation means.

LLVM's own operations where they are the same, the host's instruction (as an intrinsic) otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trapline.processor.jit.primitives import primitive
from trapline.processor.jit.text import Function, Ssa, integer

if TYPE_CHECKING:
    from trapline.processor.jit.lowering import Lowering
    from trapline.processor.language import Primitive

_INSTRUCTIONS = {"add": "add", "sub": "sub", "mul": "mul"}
_GENERIC = {
    "adds": "sadd.sat", "addus": "uadd.sat", "subs": "ssub.sat", "subus": "usub.sat",
    "mins": "smin", "maxs": "smax", "minu": "umin", "maxu": "umax",
}  # fmt: skip
_COMPARE = {"eq": "eq", "gt": "sgt"}
_LETTERS = {8: "b", 16: "w", 32: "d", 64: "q"}


def vector_type(lane: int, width: int) -> str:
    return f"<{width // lane} x i{lane}>"


def to_vector(f: Function, value: Ssa, lane: int) -> Ssa:
    """A number as a vector of lanes."""
    return f.cast("bitcast", value, vector_type(lane, value.width))


def to_number(f: Function, vector: Ssa, width: int) -> Ssa:
    """A vector as a number of `width` bits."""
    return f.cast("bitcast", vector, f"i{width}")


def splat(number: int, lane: int, width: int) -> Ssa:
    """A constant vector of equal lanes."""
    lanes = ", ".join([f"i{lane} {number}"] * (width // lane))
    return Ssa(f"<{lanes}>", vector_type(lane, width))


def call(f: Function, name: str, result: str, *args: Ssa) -> Ssa:
    """A call of an LLVM intrinsic."""
    listed = ", ".join(str(arg) for arg in args)
    return f.value(result, f"call {result} @llvm.{name}({listed})")


def widened(f: Function, value: Ssa) -> Ssa:
    """At least 128 bits, with zeros above: MMX operations done in the host's XMM registers."""
    return f.cast("zext", value, "i128") if value.width < 128 else value


def on_host(f: Function, name: str, lane: int, to: int, *values: Ssa) -> Ssa:
    """An x86 intrinsic on 128-bit vectors of `lane` giving lanes of `to`, as a number."""
    args = [to_vector(f, widened(f, value), lane) for value in values]
    return to_number(f, call(f, "x86." + name, vector_type(to, 128), *args), 128)


def _extended(f: Function, operation: str, lane: int, left: Ssa, right: Ssa) -> Ssa:
    """Lane operations that need twice the width on the way: AVG, high halves of products."""
    width = int(left.type[1 : left.type.index(" ")]) * lane
    double = vector_type(2 * lane, 2 * width)
    kind = "sext" if operation == "mulhs" else "zext"
    a, b = f.cast(kind, left, double), f.cast(kind, right, double)
    if operation == "avg":
        one = splat(1, 2 * lane, 2 * width)
        total, shift = f.op("add", f.op("add", a, b), one), 1
    else:
        total, shift = f.op("mul", a, b), lane
    moved = f.op("lshr", total, splat(shift, 2 * lane, 2 * width))
    return f.cast("trunc", moved, left.type)


def _even(f: Function, operation: str, a: Ssa, b: Ssa, width: int) -> Ssa:
    """Products of the low halves of 64-bit lanes."""
    if operation == "evenu":
        mask = splat(0xFFFFFFFF, 64, width)
        return f.op("mul", f.op("and", a, mask), f.op("and", b, mask))
    by = splat(32, 64, width)
    a, b = (f.op("ashr", f.op("shl", x, by), by) for x in (a, b))
    return f.op("mul", a, b)


@primitive("lanes")
def _lanes(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f, width = lowering.f, args[0].width
    operation, lane = effect.attributes
    if operation in ("sign", "mulhrs"):
        name = "pmul.hr.sw" if operation == "mulhrs" else f"psign.{_LETTERS[lane]}"
        result = on_host(f, f"ssse3.{name}.128", lane, lane, *args)
        return (f.cast("trunc", result, f"i{width}"),)
    left, right = (to_vector(f, arg, lane) for arg in args)
    if operation in _INSTRUCTIONS:
        result = f.op(_INSTRUCTIONS[operation], left, right)
    elif operation in _GENERIC:
        name = f"{_GENERIC[operation]}.v{width // lane}i{lane}"
        result = call(f, name, left.type, left, right)
    elif operation in _COMPARE:
        result = f.value(
            left.type,
            f"sext {_bits(f, _COMPARE[operation], left, right)} to {left.type}",
        )
    elif operation in ("evenu", "evens"):
        result = _even(f, operation, left, right, width)
    else:
        result = _extended(f, operation, lane, left, right)
    return (to_number(f, result, width),)


def _bits(f: Function, predicate: str, left: Ssa, right: Ssa) -> Ssa:
    """A comparison of vectors: one bit a lane."""
    count = left.type[1 : left.type.index(" ")]
    return f.value(f"<{count} x i1>", f"icmp {predicate} {left.type} {left.name}, {right.name}")


@primitive("lanes_abs")
def _lanes_abs(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f, width, lane = lowering.f, args[0].width, effect.attributes[0]
    vector = to_vector(f, args[0], lane)
    result = call(f, f"abs.v{width // lane}i{lane}", vector.type, vector, integer(0, 1))
    return (to_number(f, result, width),)


@primitive("lanes_shift")
def _lanes_shift(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f, width = lowering.f, args[0].width
    operation, lane = effect.attributes
    letters = {"shl": "psll", "lshr": "psrl", "ashr": "psra"}
    name = f"sse2.{letters[operation]}.{_LETTERS[lane]}"
    result = on_host(f, name, lane, lane, *args)
    return (f.cast("trunc", result, f"i{width}"),)


@primitive("lanes_choose")
def _lanes_choose(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f, width, lane = lowering.f, args[0].width, effect.attributes[0]
    first, second, mask = (to_vector(f, arg, lane) for arg in args)
    bits = _bits(f, "slt", mask, Ssa("zeroinitializer", mask.type))
    result = f.value(first.type, f"select {bits}, {second}, {first}")
    return (to_number(f, result, width),)


@primitive("lanes_signs")
def _lanes_signs(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f, width, lane = lowering.f, args[0].width, effect.attributes[0]
    vector = to_vector(f, args[0], lane)
    bits = _bits(f, "slt", vector, Ssa("zeroinitializer", vector.type))
    return (f.cast("bitcast", bits, f"i{width // lane}"),)


@primitive("lanes_widen")
def _lanes_widen(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f = lowering.f
    lane, to, is_signed = effect.attributes
    vector = to_vector(f, args[0], lane)
    wide = f.cast("sext" if is_signed else "zext", vector, vector_type(to, 128))
    return (to_number(f, wide, 128),)


def _opaque(f: Function, vector: Ssa) -> Ssa:
    """The same vector.  LLVM would store only the lanes that have changed, and the next read of
    the whole register would wait until they are in the cache."""
    return f.value(vector.type, f'call {vector.type} asm "", "=x,0"({vector})')


@primitive("lanes_insert")
def _lanes_insert(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f, width = lowering.f, args[0].width
    lane, index = effect.attributes
    # As floats, lanes stay among the vector registers on their way.
    kind = {32: "float", 64: "double"}.get(lane, f"i{lane}")
    vector = f.cast("bitcast", args[0], f"<{width // lane} x {kind}>")
    number = f.cast("bitcast", args[1], kind)
    result = f.value(vector.type, f"insertelement {vector}, {number}, i32 {index}")
    return (to_number(f, _opaque(f, result) if width == 128 else result, width),)


@primitive("shuffle")
def _shuffle(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f = lowering.f
    lane, indices = effect.attributes
    vectors = [to_vector(f, arg, lane) for arg in args]
    second = vectors[1] if len(vectors) > 1 else Ssa("poison", vectors[0].type)
    mask = ", ".join(f"i32 {index}" for index in indices)
    width = lane * len(indices)
    result = f.value(
        vector_type(lane, width),
        f"shufflevector {vectors[0]}, {second}, <{len(indices)} x i32> <{mask}>",
    )
    return (to_number(f, result, width),)
