"""Values: bit vectors of known width, described but not yet computed.

A value is a small expression tree.  How it is computed is the engines' business; `check` says
which trees are well formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """A bit vector.  `op` names the operation, `args` its values and constants."""

    op: str
    width: int
    args: tuple[Any, ...] = ()

    def _same(self, other: Value | int) -> Value:
        if isinstance(other, int):
            return const(other, self.width)
        if other.width != self.width:
            raise TypeError(f"widths differ: {self.width} and {other.width}")
        return other

    def _binary(self, op: str, other: Value | int, width: int | None = None) -> Value:
        return Value(op, width or self.width, (self, self._same(other)))

    def __add__(self, other: Value | int) -> Value:
        return self._binary("add", other)

    def __sub__(self, other: Value | int) -> Value:
        return self._binary("sub", other)

    def __mul__(self, other: Value | int) -> Value:
        return self._binary("mul", other)

    def __and__(self, other: Value | int) -> Value:
        return self._binary("and", other)

    def __or__(self, other: Value | int) -> Value:
        return self._binary("or", other)

    def __xor__(self, other: Value | int) -> Value:
        return self._binary("xor", other)

    def __lshift__(self, other: Value | int) -> Value:
        """Shift left; the amount must be below the width."""
        return self._binary("shl", other)

    def __rshift__(self, other: Value | int) -> Value:
        """Logical shift right; the amount must be below the width."""
        return self._binary("lshr", other)

    def ashr(self, other: Value | int) -> Value:
        """Arithmetic shift right; the amount must be below the width."""
        return self._binary("ashr", other)

    def __invert__(self) -> Value:
        return self ^ -1

    def __neg__(self) -> Value:
        return const(0, self.width) - self

    def equals(self, other: Value | int) -> Value:
        return self._binary("eq", other, 1)

    def differs(self, other: Value | int) -> Value:
        return self._binary("eq", other, 1) ^ 1

    def below(self, other: Value | int) -> Value:
        """Unsigned less than."""
        return self._binary("ult", other, 1)

    def less(self, other: Value | int) -> Value:
        """Signed less than."""
        return self._binary("slt", other, 1)

    def select(self, if_true: Value, if_false: Value) -> Value:
        """This one-bit value chooses."""
        if if_true.width != if_false.width or self.width != 1:
            raise TypeError("select: a one-bit condition and two values of one width")
        return Value("select", if_true.width, (self, if_true, if_false))

    def zero_extend(self, width: int) -> Value:
        return self if width == self.width else Value("zext", width, (self,))

    def sign_extend(self, width: int) -> Value:
        return self if width == self.width else Value("sext", width, (self,))

    def low(self, width: int) -> Value:
        """The low `width` bits."""
        return self if width == self.width else Value("trunc", width, (self,))

    def bits(self, low: int, width: int) -> Value:
        """`width` bits from bit `low` up."""
        return (self >> low).low(width) if low else self.low(width)

    def bit(self, position: int) -> Value:
        return self.bits(position, 1)

    @property
    def sign(self) -> Value:
        """The top bit."""
        return self.bit(self.width - 1)

    def unary(self, op: str) -> Value:
        """One of popcnt, ctz, clz (both give the width for 0), bswap; parity (one bit: even)."""
        return Value(op, 1 if op == "parity" else self.width, (self,))


def const(number: int, width: int) -> Value:
    """A constant of the given width."""
    return Value("const", width, (number & ((1 << width) - 1),))


def concat(high: Value, low: Value) -> Value:
    """high:low."""
    width = high.width + low.width
    return high.zero_extend(width) << low.width | low.zero_extend(width)


def divide(op: str, high: Value, low: Value, divisor: Value) -> Value:
    """`udiv` or `urem` of high:low by divisor.  The quotient must fit and the divisor not be 0:
    record a Raise that makes sure before."""
    return Value(op + "_wide", low.width, (high, low, divisor))
