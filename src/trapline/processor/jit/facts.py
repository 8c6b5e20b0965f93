"""What a recording tells the translator: which flags it needs, whether it ends a block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from trapline.processor.flags import CcKind
from trapline.processor.jit.entangled import is_entangled
from trapline.processor.jit.primitives import PRIMITIVES
from trapline.processor.language import (
    INSTRUCTIONS,
    Branch,
    Effect,
    FlagBits,
    Flags,
    FormFacts,
    Microcode,
    Primitive,
    Raise,
    Read,
    Repeat,
    Update,
    Value,
    When,
    Write,
    recording,
)
from trapline.processor.units import unit_of

if TYPE_CHECKING:
    from trapline.processor.decode import Decoded


@dataclass(frozen=True, slots=True)
class Facts:
    """`result`: the CcKind the flags have afterwards, -1 unknown, None untouched."""

    is_native: bool
    reads_flags: bool  # for something else than its own flags
    merges_flags: bool  # needs the flags before for those it leaves, so only if its own are kept
    kills_flags: bool  # writes all six
    writes_flags: bool
    may_leave: bool  # memory, faults, REP: somebody may see the state in between
    has_memory: bool
    is_branch: bool
    result: int | None
    needs_unit: bool  # x87, MMX or SSE must be switched on


INTERPRETED = Facts(False, True, True, False, True, True, True, True, -1, False)


@cache
def facts(form: FormFacts) -> Facts:
    """The facts of a form.  An unknown instruction is the reference engine's (which says #UD), and
    so is a branch whose target may not be canonical: the others carry no check."""
    if form.name not in INSTRUCTIONS or form.strays:
        return INTERPRETED
    walk = _Walk()
    walk.effects(recording(form), conditional=False)
    if not walk.native:
        return INTERPRETED
    return Facts(
        True, walk.reads_flags, walk.merges or bool(walk.flag_temps), walk.kills, walk.writes,
        walk.leaves, walk.memory, walk.branch, walk.result, bool(walk.units or unit_of(form)),
    )  # fmt: skip


def facts_of(instruction: Decoded) -> Facts:
    """The facts of one instruction: its form's, unless its registers forbid a handler."""
    known = facts(instruction.form)
    if not known.is_native:
        return known
    if is_entangled(instruction) or _may_write_code(instruction):
        return INTERPRETED
    return known


def _may_write_code(instruction: Decoded) -> bool:
    """Flat segments allow every access but a write through CS, which 64-bit code may do."""
    if instruction.form.bitness == 64:
        return False
    return any(bound.kind == "mem" and bound.segment == "cs" for bound in instruction.operands)


class _Walk:
    def __init__(self) -> None:
        self.native = True
        self.merges = self.kills = self.writes = self.leaves = self.memory = self.branch = False
        self.flag_temps: set[int] = set()
        self.used: set[int] = set()
        self.result: int | None = None
        self.units: set[str] = set()

    @property
    def reads_flags(self) -> bool:
        """Whether a flag that was read goes into anything but flags."""
        return bool(self.flag_temps & self.used)

    def effects(self, effects: list[Effect], conditional: bool) -> None:
        for effect in effects:
            self._uses(effect)
            match effect:
                case Read(result, place):
                    if place.kind == "flag":
                        self.flag_temps.add(result.args[0])
                    self._place(place.kind)
                case Write(place, _):
                    self._place(place.kind)
                case Update():
                    self._place("memory")
                case Flags(rule, width, _, _):
                    if conditional:
                        self.merges = True
                    kind = CcKind[rule] + (width >> 3).bit_length() - 1
                    self._flags(not conditional, -1 if conditional else kind)
                case FlagBits(bits):
                    whole = len(bits) == 6 and not conditional
                    if not whole:
                        self.merges = True
                    self._flags(whole, -1 if conditional else int(CcKind.EXPLICIT))
                case When(_, inner):
                    self.effects(inner, conditional=True)
                case Raise():
                    self.leaves = True
                case Branch():
                    self.branch = True
                case Repeat(_, inner, _):
                    self.leaves = self.memory = True
                    self.effects(inner, conditional=True)
                case Primitive(name):
                    if name not in PRIMITIVES:
                        self.native = False
                    self.leaves = self.leaves or bool(effect.unit)
                    if effect.unit:
                        self.units.add(effect.unit)
                case Microcode():
                    self.native = False

    def _place(self, kind: str) -> None:
        if kind == "memory":
            self.leaves = self.memory = True

    def _uses(self, effect: Effect) -> None:
        """Note the temporaries an effect needs for more than flags.  What is inside an Update or
        a condition counts, though flags may be all that comes of it."""
        match effect:
            case Write(place, value):
                self._values(value, place.address)
            case Read(_, place):
                self._values(place.address)
            case Update():
                self._values(effect.after, effect.place.address)
            case When(condition, _) | Raise(condition, _, _):
                self._values(condition)
            case Branch(target, condition, _, _):
                self._values(target, condition)
            case Primitive() | Microcode():
                self._values(*effect.args)
            case Repeat():
                self._values(effect.until)

    def _values(self, *values: Value | None) -> None:
        for value in values:
            if value is None:
                continue
            if value.op == "temp":
                self.used.add(value.args[0])
            self._values(*(arg for arg in value.args if isinstance(arg, Value)))

    def _flags(self, kills: bool, result: int) -> None:
        self.writes = True
        self.kills = self.kills or kills
        self.result = result
