"""IEEE-754 arithmetic as x86 does it, on bit patterns, exact and independent of the host.

No float is used: what comes out, flags included, is the same on every machine.
"""

from trapline.processor.softfloat.arithmetic import add, div, fma, mul, sqrt, sub
from trapline.processor.softfloat.compare import Relation, compare, holds, maximum, minimum
from trapline.processor.softfloat.context import ALL, BEFORE, DE, IE, OE, PE, UE, ZE, Context
from trapline.processor.softfloat.convert import (
    convert,
    from_integer,
    round_by_immediate,
    round_to_integral,
    to_integer,
    widen,
)
from trapline.processor.softfloat.format import F16, F32, F64, F80, Format, kind

__all__ = [
    "ALL",
    "BEFORE",
    "Context",
    "DE",
    "F16",
    "F32",
    "F64",
    "F80",
    "Format",
    "IE",
    "OE",
    "PE",
    "Relation",
    "UE",
    "ZE",
    "add",
    "compare",
    "convert",
    "div",
    "fma",
    "from_integer",
    "holds",
    "kind",
    "maximum",
    "minimum",
    "mul",
    "round_by_immediate",
    "round_to_integral",
    "sqrt",
    "sub",
    "to_integer",
    "widen",
]
