"""IEEE-754 arithmetic as x86 does it, on bit patterns, exact and independent of the host.

No float is used: what comes out, flags included, is the same on every machine.
"""

from trapline.processor.softfloat.arithmetic import add, div, fma, mul, sqrt, sub
from trapline.processor.softfloat.bcd import fbld, fbstp
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
from trapline.processor.softfloat.transcendental import (
    f2xm1,
    fcos,
    fpatan,
    fptan,
    fsin,
    fsincos,
    fyl2x,
    fyl2xp1,
)
from trapline.processor.softfloat.x87 import (
    Remainder,
    constant,
    fprem,
    fprem1,
    fscale,
    fxam,
    fxtract,
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
    "f2xm1",
    "fbld",
    "fbstp",
    "fcos",
    "fma",
    "fpatan",
    "fprem",
    "fprem1",
    "fptan",
    "from_integer",
    "fscale",
    "fsin",
    "fsincos",
    "fxam",
    "fxtract",
    "fyl2x",
    "fyl2xp1",
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
