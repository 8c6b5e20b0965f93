"""How small and how large an unsigned value can be, as far as its expression tells."""

from __future__ import annotations

from collections.abc import Callable

from trapline.processor.language.value import Value

Interval = tuple[int, int]


def _add(left: Interval, right: Interval, width: int) -> Interval:
    return left[0] + right[0], left[1] + right[1]


def _sub(left: Interval, right: Interval, width: int) -> Interval:
    return left[0] - right[1], left[1] - right[0]


def _mul(left: Interval, right: Interval, width: int) -> Interval:
    return left[0] * right[0], left[1] * right[1]


def _and(left: Interval, right: Interval, width: int) -> Interval:
    return 0, min(left[1], right[1])


def _or(left: Interval, right: Interval, width: int) -> Interval:
    return 0, (1 << max(left[1].bit_length(), right[1].bit_length())) - 1


def _shl(left: Interval, right: Interval, width: int) -> Interval:
    by = min(right[1], width)
    return left[0] << min(right[0], width), left[1] << by


def _lshr(left: Interval, right: Interval, width: int) -> Interval:
    return left[0] >> min(right[1], width), left[1] >> min(right[0], width)


_BINARY: dict[str, Callable[[Interval, Interval, int], Interval]] = {
    "add": _add, "sub": _sub, "mul": _mul, "and": _and, "or": _or, "xor": _or, "shl": _shl,
    "lshr": _lshr,
}  # fmt: skip


def interval(value: Value) -> Interval:
    """The least and the greatest the value can be; the whole range where nothing is known."""
    whole = 0, (1 << value.width) - 1
    low, high = _known(value) or whole
    # What would wrap may be anything.
    return (low, high) if low >= 0 and high <= whole[1] else whole


def _known(value: Value) -> Interval | None:
    op, args, width = value.op, value.args, value.width
    if op == "const":
        return args[0], args[0]
    if op in _BINARY:
        return _BINARY[op](interval(args[0]), interval(args[1]), width)
    if op in ("zext", "trunc"):
        return interval(args[0])
    if op == "select":
        yes, no = interval(args[1]), interval(args[2])
        return min(yes[0], no[0]), max(yes[1], no[1])
    if op in ("popcnt", "ctz", "clz"):
        return 0, width
    if op == "urem_wide" and args[2].op == "const":
        return 0, args[2].args[0] - 1
    return None
