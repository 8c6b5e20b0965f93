"""Effects: all an instruction can do, in program order, and the places it does them to.

Contract of replay, for both engines: register and flag writes become visible together when the
instruction completes; memory is accessed in the order recorded; a fault leaves registers and
flags as they were.  Reads see the writes recorded before them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trapline.processor.language.value import Value


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere a value lives.

    kind "operand": the instruction's operand number `index`, not in memory (general register of
    `width` bits, vector register, immediate ...; the binding says which).
    kind "register": the state slot `name` (a general register or a system slot), low `width` bits.
    kind "flag": one arithmetic flag, `name` in cf pf af zf sf of; width 1.
    kind "memory": linear-address computation `address` within segment `segment`: either the name
    of a segment register or the number of the operand whose own segment applies.
    kind "xmm": vector register number `index`.
    kind "st": x87 register ST(index), as an operand ST(i) by TOP as it was when the instruction
    began; ST(7) is thus where a push goes.
    kind "x87": physical x87 register R`index`, 80 bits.
    An MMX operand may be written with 80 bits: its x87 register, exponent field and all.
    """

    kind: str
    width: int
    index: int = 0
    name: str = ""
    address: Value | None = None
    segment: str | int = ""


@dataclass(frozen=True, slots=True)
class Read:
    result: Value
    place: Place


@dataclass(frozen=True, slots=True)
class Write:
    place: Place
    value: Value


@dataclass(frozen=True, slots=True)
class Update:
    """Read and write one memory place as a single access: what LOCK makes atomic.
    `after` may be evaluated more than once, so it must depend on `before` and earlier values."""

    before: Value
    place: Place
    after: Value
    locked: bool


@dataclass(frozen=True, slots=True)
class When:
    """The inner effects happen if the condition holds."""

    condition: Value
    effects: list[Any]


@dataclass(frozen=True, slots=True)
class Raise:
    """A fault if the condition holds.  `error_code` None: the vector has none."""

    condition: Value
    vector: int
    error_code: int | None


@dataclass(frozen=True, slots=True)
class Flags:
    """All six arithmetic flags by a lazy rule of processor.flags.CcKind (by its name)."""

    rule: str
    width: int
    dst: Value
    src: Value


@dataclass(frozen=True, slots=True)
class FlagBits:
    """Some arithmetic flags by value; those not named keep their value."""

    bits: dict[str, Value]


@dataclass(frozen=True, slots=True)
class Branch:
    """RIP := target (if the condition holds).  kind: "jump", "call", "return"; `direct` when the
    target is the instruction's near-branch operand."""

    target: Value
    condition: Value | None
    kind: str
    direct: bool


@dataclass(frozen=True, slots=True)
class Repeat:
    """A REP string instruction: while the count register is not 0, do `effects` and take one
    off the count; stop also when `until` (one bit, read after an iteration) holds.  State is
    committed after each iteration, so an iteration may fault or be interrupted."""

    count: Place
    effects: list[Any]
    until: Value | None


@dataclass(frozen=True, slots=True)
class Primitive:
    """An operation with a name that both engines know (vector, floating point, x87).

    `unit` is "" (pure), "sse" (uses and may set MXCSR) or "x87".  `attributes` are constants
    such as the lane width.  Results are new values of the given widths.
    """

    name: str
    results: tuple[Value, ...]
    args: tuple[Value, ...]
    unit: str = ""
    attributes: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Microcode:
    """A function of the core, by name, on integers: what the language cannot say."""

    name: str
    args: tuple[Value, ...] = field(default=())


Effect = (
    Read
    | Write
    | Update
    | When
    | Raise
    | Flags
    | FlagBits
    | Branch
    | Repeat
    | Primitive
    | Microcode
)
