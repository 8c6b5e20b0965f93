"""Integer vector operations that look beyond one lane, on the host's own instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trapline.processor.jit.primitives import primitive
from trapline.processor.jit.text import Function, Ssa, integer
from trapline.processor.jit.vector import call, on_host, to_number, to_vector

if TYPE_CHECKING:
    from trapline.processor.jit.lowering import Lowering
    from trapline.processor.language import Primitive

_ACROSS = {
    ("packs", 16): ("sse2.packsswb.128", 8),
    ("packs", 32): ("sse2.packssdw.128", 16),
    ("packus", 16): ("sse2.packuswb.128", 8),
    ("packus", 32): ("sse41.packusdw", 16),
    ("hadd", 16): ("ssse3.phadd.w.128", 16),
    ("hadd", 32): ("ssse3.phadd.d.128", 32),
    ("hadds", 16): ("ssse3.phadd.sw.128", 16),
    ("hsub", 16): ("ssse3.phsub.w.128", 16),
    ("hsub", 32): ("ssse3.phsub.d.128", 32),
    ("hsubs", 16): ("ssse3.phsub.sw.128", 16),
}


def _joined(f: Function, low: Ssa, high: Ssa) -> Ssa:
    """high:low of two MMX operands."""
    wide = f.op("shl", f.cast("zext", high, "i128"), integer(64, 128))
    return f.op("or", wide, f.cast("zext", low, "i128"))


@primitive("across")
def _across(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f, width = lowering.f, args[0].width
    operation, lane = effect.attributes
    name, to = _ACROSS[operation, lane]
    if width == 64:
        # Both operands' lanes in one register: the low half of the result is the answer.
        both = _joined(f, *args)
        args = (both, both)
    result = on_host(f, name, lane, to, *args)
    return (f.cast("trunc", result, f"i{width}"),)


@primitive("multiply_add")
def _multiply_add(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f, width, lane = lowering.f, args[0].width, effect.attributes[0]
    name = "sse2.pmadd.wd" if lane == 16 else "ssse3.pmadd.ub.sw.128"
    result = on_host(f, name, lane, 2 * lane, *args)
    return (f.cast("trunc", result, f"i{width}"),)


@primitive("sum_differences")
def _sum_differences(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f, width = lowering.f, args[0].width
    result = on_host(f, "sse2.psad.bw", 8, 64, *args)
    return (f.cast("trunc", result, f"i{width}"),)


@primitive("sum_differences_at")
def _sum_differences_at(
    lowering: Lowering, effect: Primitive, args: Sequence[Ssa]
) -> Sequence[Ssa]:
    f = lowering.f
    vectors = [to_vector(f, arg, 8) for arg in args]
    immediate = integer(effect.attributes[0], 8)
    result = call(f, "x86.sse41.mpsadbw", "<8 x i16>", *vectors, immediate)
    return (to_number(f, result, 128),)


@primitive("minimum_position")
def _minimum_position(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    return (on_host(lowering.f, "sse41.phminposuw", 16, 16, *args),)


@primitive("select_bytes")
def _select_bytes(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f, width = lowering.f, args[0].width
    table, controls = args
    if width == 64:
        controls = f.op("and", controls, integer(0x8787878787878787, 64))
    result = on_host(f, "ssse3.pshuf.b.128", 8, 8, table, controls)
    return (f.cast("trunc", result, f"i{width}"),)


# SETcc inside the text: with flag outputs LLVM may read EFLAGS again after clobbering them.
_SET_FLAGS = "\\0A\\09setb $1\\0A\\09sete $2\\0A\\09sets $3\\0A\\09seto $4"
_FLAG_OUTPUTS = "=&q,=&q,=&q,=&q"


@primitive("string_compare")
def _string_compare(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    """One instruction gives the result and all flags, which intrinsics cannot."""
    f = lowering.f
    immediate, wants_index = effect.attributes
    first, second = (to_vector(f, arg, 64) for arg in args[:2])
    explicit = len(args) > 2
    name = f"pcmp{'e' if explicit else 'i'}str{'i' if wants_index else 'm'}"
    kind, register = ("i32", "={cx}") if wants_index else ("<2 x i64>", "={xmm0}")
    inputs, lengths = "x,x", ""
    if explicit:
        inputs, lengths = "x,x,{ax},{dx}", f", {args[2]}, {args[3]}"
    results = f"{{{kind}, i8, i8, i8, i8}}"
    pack = f.value(
        results,
        f'call {results} asm "{name} $${immediate}, $6, $5{_SET_FLAGS}", '
        f'"{register},{_FLAG_OUTPUTS},{inputs},~{{flags}}"({first}, {second}{lengths})',
    )
    result = f.value(kind, f"extractvalue {pack}, 0")
    flags = [f.value("i8", f"extractvalue {pack}, {i}") for i in range(1, 5)]
    number = result if wants_index else to_number(f, result, 128)
    return (number, *(f.cast("trunc", flag, "i1") for flag in flags))
