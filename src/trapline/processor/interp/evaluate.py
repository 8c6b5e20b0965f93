"""Values on plain Python integers.  Every operation of the language, once, in the obvious way."""

from __future__ import annotations

from collections.abc import Callable

from trapline.processor.language import Value

_Scope = dict[int, int]


def _signed(number: int, width: int) -> int:
    return number - (1 << width) if number >> (width - 1) & 1 else number


def _ctz(number: int, width: int) -> int:
    return (number & -number).bit_length() - 1 if number else width


def _bswap(number: int, width: int) -> int:
    return int.from_bytes(number.to_bytes(width // 8, "little"), "big")


_BINARY: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, w: a + b,
    "sub": lambda a, b, w: a - b,
    "mul": lambda a, b, w: a * b,
    "and": lambda a, b, w: a & b,
    "or": lambda a, b, w: a | b,
    "xor": lambda a, b, w: a ^ b,
    "shl": lambda a, b, w: a << b,
    "lshr": lambda a, b, w: a >> b,
    "ashr": lambda a, b, w: _signed(a, w) >> b,
    "eq": lambda a, b, w: int(a == b),
    "ult": lambda a, b, w: int(a < b),
    "slt": lambda a, b, w: int(_signed(a, w) < _signed(b, w)),
}
_UNARY: dict[str, Callable[[int, int], int]] = {
    "popcnt": lambda a, w: a.bit_count(),
    "ctz": _ctz,
    "clz": lambda a, w: w - a.bit_length(),
    "bswap": _bswap,
    "parity": lambda a, w: 1 - a.bit_count() % 2,
}


class Evaluator:
    """Computes values for one instruction; the engine supplies what only it knows."""

    def __init__(self, special: Callable[[Value], int]) -> None:
        self.temps: _Scope = {}
        self._special = special  # "ea", "linear", "next_rip"
        self._addresses: dict[tuple[str, int], int] = {}

    def value(self, value: Value) -> int:
        """The value, as a non-negative integer below 2**width."""
        op, args = value.op, value.args
        if op == "temp":
            return self.temps[args[0]]
        if op == "const":
            return int(args[0])
        binary = _BINARY.get(op)
        if binary:
            left = args[0]
            number = binary(self.value(left), self.value(args[1]), left.width)
            return number & ((1 << value.width) - 1)
        if op == "select":
            return self.value(args[1] if self.value(args[0]) else args[2])
        if op in ("zext", "trunc"):
            return self.value(args[0]) & ((1 << value.width) - 1)
        if op == "sext":
            return _signed(self.value(args[0]), args[0].width) & ((1 << value.width) - 1)
        unary = _UNARY.get(op)
        if unary:
            return unary(self.value(args[0]), args[0].width)
        if op in ("udiv_wide", "urem_wide"):
            high, low, divisor = (self.value(arg) for arg in args)
            dividend = high << value.width | low
            whole, rest = divmod(dividend, divisor)
            return (whole if op == "udiv_wide" else rest) & ((1 << value.width) - 1)
        return self._addressed(value)

    def _addressed(self, value: Value) -> int:
        """An operand's address is computed once, from the registers as they were."""
        key = (value.op, value.args[0] if value.args else 0)
        if key not in self._addresses:
            self._addresses[key] = self._special(value)
        return self._addresses[key]
