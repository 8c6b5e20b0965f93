"""SSE arithmetic, comparison and conversion by the host's own instructions.

Native code runs with the guest's MXCSR and every exception masked, so rounding, NaNs, denormals
and sticky flags are the host's; the instructions are marked so that none is dropped or moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trapline.processor.jit import layout
from trapline.processor.jit.primitives import primitive
from trapline.processor.jit.text import Function, Ssa, integer
from trapline.processor.state import OFFSET

if TYPE_CHECKING:
    from trapline.processor.jit.lowering import Lowering
    from trapline.processor.language import Primitive

_MASKS, _FLAGS = 0x1F80, 0x3F
_FLOATS = {32: "float", 64: "double", 128: "<2 x double>"}
_WITH_IMMEDIATE = frozenset(("round", "cmp", "dp"))


def _float(f: Function, value: Ssa) -> Ssa:
    """A number where the host keeps floating point: in an XMM register."""
    return f.cast("bitcast", value, _FLOATS[value.width])


def _zero(type_: str) -> Ssa:
    return Ssa("zeroinitializer" if type_.startswith("<") else "0.0", type_)


def _run(f: Function, text: str, result: str, source: Ssa, old: Ssa | None = None) -> Ssa:
    """`text` with $0 the result, which starts as `old` (zero, so as to wait for nobody)."""
    before = old or _zero(result)
    return f.value(result, f'call {result} asm sideeffect "{text}", "=x,x,0"({source}, {before})')


@primitive("float")
def _arithmetic(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f = lowering.f
    operation, kind, immediate = effect.attributes
    given = f"$${immediate}, " if operation in _WITH_IMMEDIATE else ""
    text = f"{operation}{kind} {given}$1, $0"
    *before, source = (_float(f, arg) for arg in args)
    result = _run(f, text, _FLOATS[128], source, *before)
    return (f.cast("bitcast", result, "i128"),)


@primitive("float_order")
def _order(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f = lowering.f
    operation, kind = effect.attributes
    left, right = (_float(f, arg) for arg in args)
    pack = f.value(
        "{i8, i8, i8}",
        # SETcc inside: with flag outputs LLVM may read EFLAGS again after it has clobbered them.
        f'call {{i8, i8, i8}} asm sideeffect "{operation}{kind} $4, $3\\0A'
        f'\\09sete $0\\0A\\09setp $1\\0A\\09setb $2", '
        f'"=&q,=&q,=&q,x,x,~{{flags}}"({left}, {right})',
    )
    flags = [f.value("i8", f"extractvalue {pack}, {i}") for i in range(3)]
    return [f.cast("trunc", flag, "i1") for flag in flags]


# (source, target): the instruction on whole registers, and on one lane.
_PACKED = {
    ("32", "s"): "cvtdq2ps", ("32", "d"): "cvtdq2pd", ("s", "32"): "cvt{t}ps2dq",
    ("d", "32"): "cvt{t}pd2dq", ("s", "d"): "cvtps2pd", ("d", "s"): "cvtpd2ps",
}  # fmt: skip
_SCALAR = {
    ("s", "d"): "cvtss2sd", ("d", "s"): "cvtsd2ss",
    ("32", "s"): "cvtsi2ssl", ("64", "s"): "cvtsi2ssq",
    ("32", "d"): "cvtsi2sdl", ("64", "d"): "cvtsi2sdq",
    ("s", "32"): "cvt{t}ss2si", ("s", "64"): "cvt{t}ss2si",
    ("d", "32"): "cvt{t}sd2si", ("d", "64"): "cvt{t}sd2si",
}  # fmt: skip
_SIZES = {"s": 32, "d": 64, "32": 32, "64": 64}


@primitive("float_convert")
def _convert(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    f, (value,) = lowering.f, args
    source, target, truncate, _ = effect.attributes
    width = effect.results[0].width
    letter = "t" if truncate else ""
    if value.width == _SIZES[source]:
        return (_one_lane(f, source, target, letter, value),)
    # Lanes of zero beyond the operand's convert exactly and raise nothing.
    wide = _float(f, f.cast("zext", value, "i128"))
    text = _PACKED[source, target].format(t=letter) + " $1, $0"
    result = f.cast("bitcast", _run(f, text, wide.type, wide), "i128")
    return (f.cast("trunc", result, f"i{width}"),)


def _one_lane(f: Function, source: str, target: str, letter: str, value: Ssa) -> Ssa:
    text = _SCALAR[source, target].format(t=letter) + " $1, $0"
    if target in ("32", "64"):
        kind = f"i{target}"
        return f.value(kind, f'call {kind} asm sideeffect "{text}", "=r,x"({_float(f, value)})')
    result = _FLOATS[_SIZES[target]]
    if source in ("32", "64"):
        done = f.value(
            result, f'call {result} asm sideeffect "{text}", "=x,r,0"({value}, {_zero(result)})'
        )
    else:
        done = _run(f, text, result, _float(f, value))
    return f.cast("bitcast", done, f"i{_SIZES[target]}")


def _scratch(lowering: Lowering) -> Ssa:
    return lowering.f.pointer(Ssa("%s", "ptr"), OFFSET["scratch0"])


@primitive("mxcsr_read")
def _mxcsr_read(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    """The state's word and the flags the host's has gathered since native code was entered."""
    f, scratch = lowering.f, _scratch(lowering)
    f.line(f'call void asm sideeffect "stmxcsr ($0)", "r,~{{memory}}"({scratch})')
    gathered = f.op("and", f.load("i32", scratch), integer(_FLAGS, 32))
    word = f.cast("trunc", lowering.slot("mxcsr"), "i32")
    return (f.op("or", word, gathered),)


@primitive("mxcsr_load")
def _mxcsr_load(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    """The host's register follows; a word that unmasks an exception ends native execution."""
    f, scratch = lowering.f, _scratch(lowering)
    masks = f.op("and", args[0], integer(_MASKS, 32))
    masked = f.compare("eq", masks, integer(_MASKS, 32))
    go, stop = f.new_block("masked"), f.new_block("unmasked")
    f.branch(masked, go, stop, likely=True)
    f.open_block(stop)
    lowering.note_exit(layout.Exit.INTERPRET)
    f.line("ret void")
    f.open_block(go)
    f.store(args[0], scratch)
    f.line(f'call void asm sideeffect "ldmxcsr ($0)", "r,~{{memory}}"({scratch})')
    return ()
