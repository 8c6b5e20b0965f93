"""IEEE-754 arithmetic as x86 does it, on bit patterns, exact and independent of the host.

No float is used: what comes out, flags included, is the same on every machine.
"""

from trapline.processor.softfloat.arithmetic import add, div, fma, mul, sqrt, sub
from trapline.processor.softfloat.bcd import load_bcd, store_bcd
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
from trapline.processor.softfloat.format import F16, F32, F64, F80, Format
from trapline.processor.softfloat.x87 import (
    Remainder,
    constant,
    examine,
    extract,
    remainder,
    scale,
)

__all__ = [
    "ALL",
    "BEFORE",
    "DE",
    "F16",
    "F32",
    "F64",
    "F80",
    "IE",
    "OE",
    "PE",
    "UE",
    "ZE",
    "Context",
    "Format",
    "Relation",
    "Remainder",
    "add",
    "compare",
    "constant",
    "convert",
    "div",
    "examine",
    "extract",
    "fma",
    "from_integer",
    "holds",
    "load_bcd",
    "maximum",
    "minimum",
    "mul",
    "remainder",
    "round_by_immediate",
    "round_to_integral",
    "scale",
    "sqrt",
    "store_bcd",
    "sub",
    "to_integer",
    "widen",
]
