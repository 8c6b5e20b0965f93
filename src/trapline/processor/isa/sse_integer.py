"""Integer vectors lane by lane: sums, products, comparisons, shifts, logic; MMX and XMM alike."""

from __future__ import annotations

from collections.abc import Callable

from trapline.processor.isa.sse_shared import (
    Table,
    combine,
    enter,
    fetch,
    put,
    register_by_lane,
    zeros,
)
from trapline.processor.language import Cpu, Operand, Value, const, instruction

_LANES: Table = {
    "paddb": ("NP/66 0F FC /r", "add", 8),
    "paddw": ("NP/66 0F FD /r", "add", 16),
    "paddd": ("NP/66 0F FE /r", "add", 32),
    "paddq": ("NP/66 0F D4 /r", "add", 64),
    "psubb": ("NP/66 0F F8 /r", "sub", 8),
    "psubw": ("NP/66 0F F9 /r", "sub", 16),
    "psubd": ("NP/66 0F FA /r", "sub", 32),
    "psubq": ("NP/66 0F FB /r", "sub", 64),
    "paddsb": ("NP/66 0F EC /r", "adds", 8),
    "paddsw": ("NP/66 0F ED /r", "adds", 16),
    "paddusb": ("NP/66 0F DC /r", "addus", 8),
    "paddusw": ("NP/66 0F DD /r", "addus", 16),
    "psubsb": ("NP/66 0F E8 /r", "subs", 8),
    "psubsw": ("NP/66 0F E9 /r", "subs", 16),
    "psubusb": ("NP/66 0F D8 /r", "subus", 8),
    "psubusw": ("NP/66 0F D9 /r", "subus", 16),
    "pmullw": ("NP/66 0F D5 /r", "mul", 16),
    "pmulld": ("66 0F 38 40 /r", "mul", 32),
    "pmulhw": ("NP/66 0F E5 /r", "mulhs", 16),
    "pmulhuw": ("NP/66 0F E4 /r", "mulhu", 16),
    "pmulhrsw": ("NP/66 0F 38 0B /r", "mulhrs", 16),
    "pmuludq": ("NP/66 0F F4 /r", "evenu", 64),
    "pmuldq": ("66 0F 38 28 /r", "evens", 64),
    "pminub": ("NP/66 0F DA /r", "minu", 8),
    "pminuw": ("66 0F 38 3A /r", "minu", 16),
    "pminud": ("66 0F 38 3B /r", "minu", 32),
    "pminsb": ("66 0F 38 38 /r", "mins", 8),
    "pminsw": ("NP/66 0F EA /r", "mins", 16),
    "pminsd": ("66 0F 38 39 /r", "mins", 32),
    "pmaxub": ("NP/66 0F DE /r", "maxu", 8),
    "pmaxuw": ("66 0F 38 3E /r", "maxu", 16),
    "pmaxud": ("66 0F 38 3F /r", "maxu", 32),
    "pmaxsb": ("66 0F 38 3C /r", "maxs", 8),
    "pmaxsw": ("NP/66 0F EE /r", "maxs", 16),
    "pmaxsd": ("66 0F 38 3D /r", "maxs", 32),
    "pavgb": ("NP/66 0F E0 /r", "avg", 8),
    "pavgw": ("NP/66 0F E3 /r", "avg", 16),
    "pcmpeqb": ("NP/66 0F 74 /r", "eq", 8),
    "pcmpeqw": ("NP/66 0F 75 /r", "eq", 16),
    "pcmpeqd": ("NP/66 0F 76 /r", "eq", 32),
    "pcmpeqq": ("66 0F 38 29 /r", "eq", 64),
    "pcmpgtb": ("NP/66 0F 64 /r", "gt", 8),
    "pcmpgtw": ("NP/66 0F 65 /r", "gt", 16),
    "pcmpgtd": ("NP/66 0F 66 /r", "gt", 32),
    "pcmpgtq": ("66 0F 38 37 /r", "gt", 64),
    "psignb": ("NP/66 0F 38 08 /r", "sign", 8),
    "psignw": ("NP/66 0F 38 09 /r", "sign", 16),
    "psignd": ("NP/66 0F 38 0A /r", "sign", 32),
}
# The two operands' lanes in a row, packed to half or combined by pairs.
_ACROSS: Table = {
    "packsswb": ("NP/66 0F 63 /r", "packs", 16),
    "packssdw": ("NP/66 0F 6B /r", "packs", 32),
    "packuswb": ("NP/66 0F 67 /r", "packus", 16),
    "packusdw": ("66 0F 38 2B /r", "packus", 32),
    "phaddw": ("NP/66 0F 38 01 /r", "hadd", 16),
    "phaddd": ("NP/66 0F 38 02 /r", "hadd", 32),
    "phaddsw": ("NP/66 0F 38 03 /r", "hadds", 16),
    "phsubw": ("NP/66 0F 38 05 /r", "hsub", 16),
    "phsubd": ("NP/66 0F 38 06 /r", "hsub", 32),
    "phsubsw": ("NP/66 0F 38 07 /r", "hsubs", 16),
}
_MEANINGS = {
    "add": "Sums",
    "sub": "Differences",
    "adds": "Sums, held at the signed limits",
    "addus": "Sums, held at the unsigned limit",
    "subs": "Differences, held at the signed limits",
    "subus": "Differences, held at zero",
    "mul": "The low halves of products",
    "mulhs": "The high halves of signed products",
    "mulhu": "The high halves of unsigned products",
    "mulhrs": "Signed products, rounded to their high bits but one",
    "evenu": "Unsigned products of the low halves",
    "evens": "Signed products of the low halves",
    "minu": "The lesser, unsigned",
    "mins": "The lesser, signed",
    "maxu": "The greater, unsigned",
    "maxs": "The greater, signed",
    "avg": "Averages, rounded up",
    "eq": "All ones where equal",
    "gt": "All ones where greater, signed",
    "sign": "dst negated, kept or cleared by the sign of src",
    "packs": "Both operands' lanes halved, held at the signed limits",
    "packus": "Both operands' signed lanes halved, held at the unsigned limits",
    "hadd": "Sums of neighbours in both operands",
    "hsub": "Differences of neighbours in both operands",
    "hadds": "Sums of neighbours in both operands, held at the signed limits",
    "hsubs": "Differences of neighbours in both operands, held at the signed limits",
}
register_by_lane(_LANES, "lanes", _MEANINGS)
register_by_lane(_ACROSS, "across", _MEANINGS)


def _exclusive(left: Value, right: Value) -> Value:
    return left ^ right


def _logic(operation: Callable[[Value, Value], Value]) -> Callable[[Cpu, Operand, Operand], None]:
    def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """Bit by bit; the operands' type says nothing about the result."""
        if operation is _exclusive and cpu.form.aliased:  # how code clears a register
            enter(cpu, dst)
            put(cpu, dst, zeros(dst.width))
        else:
            combine(cpu, dst, src, operation)

    return description


for _operation, _change, _integer, _float in (
    ("and", lambda a, b: a & b, "0F DB /r", "0F 54 /r"),
    ("andn", lambda a, b: ~a & b, "0F DF /r", "0F 55 /r"),
    ("or", lambda a, b: a | b, "0F EB /r", "0F 56 /r"),
    ("xor", _exclusive, "0F EF /r", "0F 57 /r"),
):
    instruction("NP/66 " + _integer, name="p" + _operation)(_logic(_change))
    instruction("NP " + _float, name=_operation + "ps")(_logic(_change))
    instruction("66 " + _float, name=_operation + "pd")(_logic(_change))


def _shift(operation: str, lane: int) -> Callable[[Cpu, Operand, Operand], None]:
    def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """All lanes by one count: an immediate, or the low 64 bits of the source."""
        enter(cpu, dst)
        if cpu.form.immediate is not None:
            count = const(cpu.form.immediate, 64)
        else:
            count = fetch(cpu, src).low(64)
        value = dst.get()
        of = (operation, lane)
        put(cpu, dst, cpu.primitive("lanes_shift", value, count, widths=(value.width,), of=of)[0])

    return description


for _name, _operation, _lane, _opcode, _group in (
    ("psllw", "shl", 16, "0F F1 /r", "0F 71 /6 ib"),
    ("pslld", "shl", 32, "0F F2 /r", "0F 72 /6 ib"),
    ("psllq", "shl", 64, "0F F3 /r", "0F 73 /6 ib"),
    ("psrlw", "lshr", 16, "0F D1 /r", "0F 71 /2 ib"),
    ("psrld", "lshr", 32, "0F D2 /r", "0F 72 /2 ib"),
    ("psrlq", "lshr", 64, "0F D3 /r", "0F 73 /2 ib"),
    ("psraw", "ashr", 16, "0F E1 /r", "0F 71 /4 ib"),
    ("psrad", "ashr", 32, "0F E2 /r", "0F 72 /4 ib"),
):
    instruction("NP/66 " + _opcode, "NP/66 " + _group, name=_name)(_shift(_operation, _lane))


def _absolute(lane: int) -> Callable[[Cpu, Operand, Operand], None]:
    def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """Magnitudes; the most negative number stays."""
        enter(cpu, dst)
        value = fetch(cpu, src, dst.width)
        put(cpu, dst, cpu.primitive("lanes_abs", value, widths=(dst.width,), of=(lane,))[0])

    return description


instruction("NP/66 0F 38 1C /r", name="pabsb")(_absolute(8))
instruction("NP/66 0F 38 1D /r", name="pabsw")(_absolute(16))
instruction("NP/66 0F 38 1E /r", name="pabsd")(_absolute(32))


def _simple(cpu: Cpu, dst: Operand, src: Operand, primitive: str, *of: int) -> None:
    combine(
        cpu,
        dst,
        src,
        lambda left, right: cpu.primitive(primitive, left, right, widths=(left.width,), of=of)[0],
    )


@instruction("NP/66 0F F5 /r")
def pmaddwd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """Products of signed words, neighbours added."""
    _simple(cpu, dst, src, "multiply_add", 16)


@instruction("NP/66 0F 38 04 /r")
def pmaddubsw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """Products of unsigned (dst) and signed (src) bytes, neighbours added with saturation."""
    _simple(cpu, dst, src, "multiply_add", 8)


@instruction("NP/66 0F F6 /r")
def psadbw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """The sum of absolute differences of eight bytes, for each 64 bits."""
    _simple(cpu, dst, src, "sum_differences")


@instruction("66 0F 3A 42 /r ib")
def mpsadbw(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
    """Sums of absolute differences of four bytes at eight places."""
    _simple(cpu, dst, src, "sum_differences_at", (cpu.form.immediate or 0) & 7)


@instruction("66 0F 38 41 /r")
def phminposuw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """The smallest word and its place; the rest is zero."""
    value = fetch(cpu, src, 128)
    dst.set(cpu.primitive("minimum_position", value, widths=(128,))[0])


@instruction("66 0F 38 17 /r")
def ptest(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """ZF: no common bit; CF: nothing in src that dst has not."""
    right = fetch(cpu, src, 128)
    left = dst.get()
    off = const(0, 1)
    cpu.flags.put(
        zf=(left & right).equals(0), cf=(~left & right).equals(0), pf=off, af=off, sf=off, of=off
    )
