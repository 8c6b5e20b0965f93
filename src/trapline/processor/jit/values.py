"""Values of the language as LLVM IR."""

from __future__ import annotations

from trapline.processor.jit.text import Function, Ssa, integer
from trapline.processor.language import Value

_BINARY = {
    "add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor",
    "shl": "shl", "lshr": "lshr", "ashr": "ashr",
}  # fmt: skip
_COMPARE = {"eq": "eq", "ult": "ult", "slt": "slt"}
_DIVISION_ASM = (
    'call {{i64, i64}} asm "divq $4", "={{ax}},={{dx}},0,1,r,~{{flags}}"'
    "(i64 {low}, i64 {high}, i64 {divisor})"
)


class ValueWriter:
    """Writes values into a function; each value object is computed once a scope."""

    def __init__(self, function: Function) -> None:
        self.f = function
        self.temps: dict[int, Ssa] = {}
        self._known: dict[int, Ssa] = {}
        self._kept: list[Value] = []  # so that ids stay unique

    def forget(self) -> dict[int, Ssa]:
        """Start a scope of its own (a conditional block); give what to restore after it."""
        outer, self._known = self._known, dict(self._known)
        return outer

    def restore(self, outer: dict[int, Ssa]) -> None:
        self._known = outer

    def value(self, value: Value) -> Ssa:
        """The value, computed in the current block or one that dominates it."""
        known = self._known.get(id(value))
        if known is None:
            known = self._compute(value)
            self._known[id(value)] = known
            self._kept.append(value)
        return known

    def _compute(self, value: Value) -> Ssa:
        f, op, args = self.f, value.op, value.args
        if op == "const":
            return integer(args[0], value.width)
        if op == "temp":
            return self.temps[args[0]]
        if op in _BINARY:
            return f.op(_BINARY[op], self.value(args[0]), self.value(args[1]))
        if op in _COMPARE:
            return f.compare(_COMPARE[op], self.value(args[0]), self.value(args[1]))
        if op == "select":
            condition, yes, no = (self.value(arg) for arg in args)
            return f.select(condition, yes, no)
        if op in ("zext", "sext", "trunc"):
            source = self.value(args[0])
            if op == "zext" and source.width > value.width:
                op = "trunc"
            return f.cast(op, source, f"i{value.width}")
        if op in ("udiv_wide", "urem_wide"):
            return self._divide(op, value.width, *(self.value(arg) for arg in args))
        return self._unary(op, value, self.value(args[0]))

    def _unary(self, op: str, value: Value, source: Ssa) -> Ssa:
        f, kind = self.f, source.type
        if op == "popcnt":
            return f.value(kind, f"call {kind} @llvm.ctpop.{kind}({source})")
        if op in ("ctz", "clz"):
            name = "cttz" if op == "ctz" else "ctlz"
            return f.value(kind, f"call {kind} @llvm.{name}.{kind}({source}, i1 false)")
        if op == "bswap":
            return f.value(kind, f"call {kind} @llvm.bswap.{kind}({source})")
        if op == "parity":
            count = f.value("i8", f"call i8 @llvm.ctpop.i8({f.cast('trunc', source, 'i8')})")
            return f.op("xor", f.cast("trunc", count, "i1"), integer(1, 1))
        raise KeyError(op)

    def _divide(self, op: str, width: int, high: Ssa, low: Ssa, divisor: Ssa) -> Ssa:
        f = self.f
        if width == 64:
            # The 128-bit IR division would call a library; the instruction does it exactly.
            pair = f.value(
                "{i64, i64}",
                _DIVISION_ASM.format(low=low.name, high=high.name, divisor=divisor.name),
            )
            part = 0 if op == "udiv_wide" else 1
            return f.value("i64", f"extractvalue {pair}, {part}")
        double = f"i{2 * width}"
        whole = f.op(
            "or",
            f.op("shl", f.cast("zext", high, double), integer(width, 2 * width)),
            f.cast("zext", low, double),
        )
        operation = "udiv" if op == "udiv_wide" else "urem"
        result = f.op(operation, whole, f.cast("zext", divisor, double))
        return f.cast("trunc", result, f"i{width}")
