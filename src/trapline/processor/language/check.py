"""The grammar: which recordings are well formed.

Engines may rely on what is checked here.  Nothing here knows whether a description is right.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from trapline.processor.language.effect import (
    Branch,
    Effect,
    FlagBits,
    Flags,
    Microcode,
    Place,
    Primitive,
    Raise,
    Read,
    Repeat,
    Update,
    When,
    Write,
)
from trapline.processor.language.interval import interval
from trapline.processor.language.recorder import FormFacts
from trapline.processor.language.value import Value

RULES = frozenset({"ADD", "SUB", "LOGIC", "INC", "DEC"})
FLAGS = frozenset({"cf", "pf", "af", "zf", "sf", "of"})
_SEGMENTS = frozenset({"es", "cs", "ss", "ds", "fs", "gs"})
_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21})
_ARITHMETIC = frozenset({"add", "sub", "mul", "and", "or", "xor"})
_SHIFTS = frozenset({"shl", "lshr", "ashr"})
_COMPARISONS = frozenset({"eq", "ult", "slt"})
_COUNTS = frozenset({"popcnt", "ctz", "clz", "bswap"})
_DIVISIONS = frozenset({"udiv_wide", "urem_wide"})
_INSTRUCTION = {"rip": 64, "next_rip": 64, "float_opcode": 16}  # known of the instruction itself


class GrammarError(Exception):
    """A recording that is not well formed; says where and why."""


@dataclass(slots=True)
class _Scope:
    """What may be read here."""

    temps: set[int]
    safe_divisors: list[Value]
    checked: dict[int, Value] = field(default_factory=dict)  # values found well formed, by id

    def inner(self) -> _Scope:
        return _Scope(set(self.temps), list(self.safe_divisors), dict(self.checked))


class _Checker:
    def __init__(self, form: FormFacts, registers: Collection[str]) -> None:
        self.form = form
        self.registers = registers
        self.has_stored = False
        self.has_ended = False

    def require(self, condition: object, complaint: str) -> None:
        if not condition:
            raise GrammarError(f"{self.form}: {complaint}")

    # -- effects -----------------------------------------------------------------------------------

    def effects(self, effects: list[Effect], scope: _Scope) -> None:
        for effect in effects:
            self.require(not self.has_ended, f"{type(effect).__name__} after microcode")
            self.effect(effect, scope)

    def effect(self, effect: Effect, scope: _Scope) -> None:
        match effect:
            case Read(result, place):
                self.place(place, scope)
                self.require(result.width == place.width, "a read changes the width")
                self.define(result, scope)
            case Write(place, value):
                self.place(place, scope, is_write=True)
                self.value(value, scope, place.width)
                self.has_stored |= place.kind == "memory"
            case Update(before, place, after, _):
                self.require(place.kind == "memory", "only memory is updated")
                self.place(place, scope, is_write=True)
                self.define(before, scope)
                self.value(after, scope, place.width)
                self.require(before.width == place.width, "an update changes the width")
                self.has_stored = True
            case When(condition, inner):
                self.value(condition, scope, 1)
                self.require(inner, "an empty when")
                self.effects(inner, scope.inner())
            case Raise():
                self.raised(effect, scope)
            case Flags() | FlagBits():
                self.flags(effect, scope)
            case Branch():
                self.branch(effect, scope)
            case Repeat():
                self.repeat(effect)
            case Primitive(name, results, args, _, _):
                self.require(name, "a primitive without a name")
                for arg in args:
                    self.value(arg, scope)
                for result in results:
                    self.define(result, scope)
            case Microcode(name, args):
                self.require(name, "microcode without a name")
                for arg in args:
                    self.value(arg, scope)
                self.has_ended = True

    def define(self, temp: Value, scope: _Scope) -> None:
        self.require(temp.op == "temp" and temp.width > 0, "a result that is not a temporary")
        self.require(temp.args[0] not in scope.temps, "a temporary defined twice")
        scope.temps.add(temp.args[0])

    def raised(self, effect: Raise, scope: _Scope) -> None:
        self.value(effect.condition, scope, 1)
        self.require(0 <= effect.vector < 32, f"vector {effect.vector}")
        coded = effect.vector in _WITH_ERROR_CODE
        self.require(coded == (effect.error_code is not None), "an error code of the wrong kind")
        self.require(not self.has_stored, "a fault after memory was written")
        # A division is safe after a fault that looked at its divisor.
        scope.safe_divisors.extend(_parts(effect.condition))

    def flags(self, effect: Flags | FlagBits, scope: _Scope) -> None:
        if isinstance(effect, FlagBits):
            self.require(effect.bits and effect.bits.keys() <= FLAGS, "flags by a wrong name")
            for bit in effect.bits.values():
                self.value(bit, scope, 1)
            return
        self.require(effect.rule in RULES, f"flag rule {effect.rule}")
        self.require(effect.width in (8, 16, 32, 64), "flags of an odd width")
        self.value(effect.dst, scope, effect.width)
        self.value(effect.src, scope, effect.width)

    def branch(self, effect: Branch, scope: _Scope) -> None:
        self.value(effect.target, scope, 64)
        if effect.condition is not None:
            self.value(effect.condition, scope, 1)
        self.require(effect.kind in ("jump", "call", "return"), f"branch {effect.kind}")
        near = any(operand.kind == "branch" for operand in self.form.operands)
        self.require(near == effect.direct, "direct is not what the operand says")

    def repeat(self, effect: Repeat) -> None:
        """The body stands for itself: it may run again without what was recorded before it."""
        self.place(effect.count, _Scope(set(), []))
        self.require(effect.count.kind == "register", "the count is not a register")
        self.require(effect.effects, "an empty repeat")
        stored, self.has_stored = self.has_stored, False
        inner = _Scope(set(), [])
        self.effects(effect.effects, inner)
        self.require(not self.has_ended, "microcode in a repeat")
        if effect.until is not None:
            self.value(effect.until, inner, 1)
        self.has_stored |= stored

    # -- places ------------------------------------------------------------------------------------

    def place(self, place: Place, scope: _Scope, is_write: bool = False) -> None:
        self.require(place.width > 0, "a place without width")
        match place.kind:
            case "operand":
                self.require(0 <= place.index < len(self.form.operands), "no such operand")
                operand = self.form.operands[place.index]
                self.require(operand.kind != "mem", "a memory operand as a register")
                limit = 80 if operand.kind == "mmx" else operand.width
                self.require(place.width <= limit, "wider than its operand")
                constant = operand.kind in ("imm", "branch", "far")
                self.require(not (is_write and constant), f"writing to {operand.kind}")
            case "register":
                self.require(place.name in self.registers, f"no register {place.name}")
                self.require(place.width in (8, 16, 32, 64), "a register of an odd width")
            case "flag":
                self.require(place.name in FLAGS and place.width == 1, "no such flag")
                self.require(not is_write, "flags are written as flags")
            case "memory":
                self.require(place.width % 8 == 0, "memory is made of bytes")
                self.require(place.address is not None, "memory without an address")
                assert place.address is not None
                self.value(place.address, scope, 64)
                self.segment(place.segment)
            case "xmm" | "st" | "x87":
                limit = 16 if place.kind == "xmm" else 8
                self.require(0 <= place.index < limit, f"no {place.kind}{place.index}")
            case other:
                self.require(False, f"a place of kind {other}")

    def segment(self, segment: str | int) -> None:
        if isinstance(segment, int):
            self.memory_operand(segment)
        else:
            self.require(segment in _SEGMENTS, f"no segment {segment}")

    def memory_operand(self, index: int) -> None:
        known = 0 <= index < len(self.form.operands)
        self.require(known and self.form.operands[index].kind == "mem", "not a memory operand")

    # -- values ------------------------------------------------------------------------------------

    def value(self, value: Value, scope: _Scope, width: int | None = None) -> None:
        if width is not None:
            self.require(value.width == width, f"{value.op} of {value.width} bits, not {width}")
        if id(value) in scope.checked:
            return
        for arg in value.args:
            if isinstance(arg, Value):
                self.value(arg, scope)
        self.operation(value, scope)
        scope.checked[id(value)] = value

    def operation(self, value: Value, scope: _Scope) -> None:
        op, width, args = value.op, value.width, value.args
        widths = [arg.width for arg in args if isinstance(arg, Value)]
        if op == "temp":
            self.require(args[0] in scope.temps, "a temporary read before it is defined")
        elif op == "const":
            self.require(0 <= args[0] < 1 << width, f"{args[0]} in {width} bits")
        elif op in _ARITHMETIC:
            self.require(widths == [width, width], f"{op} {widths} -> {width}")
        elif op in _SHIFTS:
            self.require(widths == [width, width], f"{op} {widths} -> {width}")
            most = interval(args[1])[1]
            self.require(most < width, f"{op} of {width} bits by up to {most}")
        elif op in _COMPARISONS:
            self.require(width == 1 and widths[0] == widths[1], f"{op} {widths} -> {width}")
        elif op == "select":
            self.require(widths == [1, width, width], f"select {widths} -> {width}")
        elif op in ("zext", "sext"):
            self.require(widths[0] < width, f"{op} {widths} -> {width}")
        elif op == "trunc":
            self.require(widths[0] > width > 0, f"trunc {widths} -> {width}")
        elif op in _COUNTS:
            self.require(widths == [width], f"{op} {widths} -> {width}")
            self.require(op != "bswap" or width in (32, 64), f"bswap of {width} bits")
        elif op == "parity":
            self.require(widths == [8] and width == 1, f"parity {widths} -> {width}")
        elif op in _DIVISIONS:
            self.division(value, scope)
        elif op in ("ea", "linear"):
            self.require(width == 64, f"{op} of {width} bits")
            self.memory_operand(args[0])
        elif op == "number":
            known = 0 <= args[0] < len(self.form.operands)
            self.require(known and self.form.operands[args[0]].kind == "st", "not an ST(i)")
            self.require(width == 8, f"number of {width} bits")
        else:
            self.require(_INSTRUCTION.get(op) == width, f"no operation {op} of {width} bits")

    def division(self, value: Value, scope: _Scope) -> None:
        high, low, divisor = value.args
        self.require(
            high.width == low.width == divisor.width == value.width, "a division of mixed widths"
        )
        if divisor.op == "const":
            self.require(interval(high)[1] < divisor.args[0], "a quotient that may not fit")
        else:
            is_safe = any(part is divisor for part in scope.safe_divisors)
            self.require(is_safe, "a division before a fault made sure of it")


def _parts(value: Value) -> list[Value]:
    parts, seen = [value], {id(value)}
    for part in parts:
        for arg in part.args:
            if isinstance(arg, Value) and id(arg) not in seen:
                seen.add(id(arg))
                parts.append(arg)
    return parts


def check(form: FormFacts, effects: list[Effect], registers: Collection[str]) -> None:
    """Raise GrammarError unless this recording of this form is well formed.
    `registers`: the names of the state's slots."""
    _Checker(form, registers).effects(effects, _Scope(set(), []))
