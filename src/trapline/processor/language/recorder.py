"""The recorder stands in for the processor while an instruction describes itself.

A description is a function of `cpu` (this recorder) and its operands.  It runs once a form; what
it does becomes a list of effects.  Nothing here knows how a value is computed or where memory is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
from trapline.processor.language.value import Value, const

DE, UD, GP, AC = 0, 6, 13, 17  # vectors descriptions raise themselves


@dataclass(frozen=True, slots=True)
class OperandKind:
    """What a form knows of one operand.

    kind: "reg" (general register), "mem", "imm" (already extended to `width`), "xmm", "mmx",
    "st", "sreg", "cr", "dr", "branch" (near target), "far" (immediate far pointer).
    """

    kind: str
    width: int


@dataclass(frozen=True, slots=True)
class FormFacts:
    """What a description may ask about the form it is recorded for."""

    name: str
    operands: tuple[OperandKind, ...]
    lock: bool = False
    repeat: str = ""  # "", "rep" (also REPE), "repne"
    bitness: int = 64  # of the code segment
    operand_width: int = 32  # effective operand size
    address_width: int = 64  # effective address size
    stack_width: int = 64  # 64, or what SS.B says
    aliased: bool = False  # the first two operands are one register
    # Of a vector instruction: which lanes, predicate, rounding ...; of ENTER: the nesting level.
    immediate: int | None = None
    shifts: bool = False  # a shift or rotate by an immediate that is certainly not 0
    # A near branch of 64-bit code to an address that is not canonical, or only with 57 bits.
    strays: bool = False


class Operand:
    """An operand as a description sees it."""

    __slots__ = ("_cpu", "index", "place", "width", "kind")

    def __init__(self, cpu: Cpu, index: int, place: Place, kind: str) -> None:
        self._cpu, self.index, self.place, self.width, self.kind = (
            cpu,
            index,
            place,
            place.width,
            kind,
        )

    @property
    def in_memory(self) -> bool:
        return self.place.kind == "memory"

    def get(self) -> Value:
        return self._cpu.read(self.place)

    def set(self, value: Value) -> None:
        self._cpu.write(self.place, value)

    def update(self, change: Callable[[Value], Value]) -> Value:
        """Replace the content by change(content); return the content before.  In memory this is
        one read-modify-write access, and the one that LOCK makes atomic."""
        if not self.in_memory:
            before = self.get()
            self.set(change(before))
            return before
        before = self._cpu.temp(self.width)
        locked = self._cpu.locked
        self._cpu.effects.append(Update(before, self.place, change(before), locked))
        return before

    def narrowed(self, width: int) -> Operand:
        """The low `width` bits of this operand."""
        place = self.place
        narrow = Place(place.kind, width, place.index, place.name, place.address, place.segment)
        return Operand(self._cpu, self.index, narrow, self.kind)


class FlagFile:
    """The arithmetic flags as a description sees them."""

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu

    def __getattr__(self, name: str) -> Value:
        if name not in ("cf", "pf", "af", "zf", "sf", "of"):
            raise AttributeError(name)
        return self._cpu.read(Place("flag", 1, name=name))

    def _rule(self, rule: str, result: Value, src: Value) -> None:
        self._cpu.effects.append(Flags(rule, result.width, result, src))

    def after_add(self, result: Value, addend: Value) -> None:
        self._rule("ADD", result, addend)

    def after_sub(self, result: Value, subtrahend: Value) -> None:
        self._rule("SUB", result, subtrahend)

    def after_logic(self, result: Value) -> None:
        self._rule("LOGIC", result, const(0, result.width))

    def after_inc(self, result: Value) -> None:
        self._rule("INC", result, self.cf.zero_extend(result.width))

    def after_dec(self, result: Value) -> None:
        self._rule("DEC", result, self.cf.zero_extend(result.width))

    def put(self, **bits: Value) -> None:
        """Set the flags named; the others keep their value."""
        self._cpu.effects.append(FlagBits(bits))

    def put_result(self, result: Value, **bits: Value) -> None:
        """SF, ZF and PF from a result; the flags named by value; the rest keep their value."""
        given = {
            "sf": result.sign,
            "zf": result.equals(0),
            "pf": result.low(8).unary("parity") if result.width > 8 else result.unary("parity"),
        }
        self.put(**(given | bits))

    def condition(self, code: int) -> Value:
        """One of the sixteen conditions (SDM vol. 1, appendix B), by its number."""
        match code >> 1:
            case 0:
                base = self.of
            case 1:
                base = self.cf
            case 2:
                base = self.zf
            case 3:
                base = self.cf | self.zf
            case 4:
                base = self.sf
            case 5:
                base = self.pf
            case 6:
                base = self.sf ^ self.of
            case _:
                base = self.zf | (self.sf ^ self.of)
        return base ^ 1 if code & 1 else base


class Cpu:
    """The recorder.  `form` says what is being recorded, `effects` is the recording."""

    def __init__(self, form: FormFacts, locked: bool) -> None:
        self.form = form
        self.locked = locked
        self.effects: list[Effect] = []
        self.flags = FlagFile(self)
        self._temps = 0

    # -- values and places -----------------------------------------------------------------------

    def temp(self, width: int) -> Value:
        self._temps += 1
        return Value("temp", width, (self._temps,))

    def read(self, place: Place) -> Value:
        result = self.temp(place.width)
        self.effects.append(Read(result, place))
        return result

    def write(self, place: Place, value: Value) -> None:
        if value.width != place.width:
            raise TypeError(f"{self.form.name}: writing {value.width} bits to {place.width}")
        self.effects.append(Write(place, value))

    def register(self, name: str, width: int = 64) -> Operand:
        """A register by its 64-bit name ("rax"), its low `width` bits; or a state slot."""
        return Operand(self, -1, Place("register", width, name=name), "reg")

    def xmm(self, number: int, width: int = 128) -> Operand:
        return Operand(self, -1, Place("xmm", width, index=number), "xmm")

    def memory(self, segment: str | int, address: Value, width: int) -> Operand:
        """Memory at segment:address.  `segment` is a segment register's name, or the number of
        an operand whose segment (with its override) applies.  The address is an offset within
        the segment, already wrapped to its address size and zero-extended to 64 bits."""
        return Operand(self, -1, Place("memory", width, address=address, segment=segment), "mem")

    def effective_address(self, operand: Operand) -> Value:
        """The offset a memory operand names, zero-extended to 64 bits (what LEA computes)."""
        return Value("ea", 64, (operand.index,))

    def linear_address(self, operand: Operand) -> Value:
        """The linear address of a memory operand: its segment's base added."""
        return Value("linear", 64, (operand.index,))

    @property
    def next_rip(self) -> Value:
        """The address of the following instruction."""
        return Value("next_rip", 64)

    @property
    def rip(self) -> Value:
        """The address of this instruction."""
        return Value("rip", 64)

    @property
    def float_opcode(self) -> Value:
        """What x87 keeps of this instruction as its last opcode (FOP)."""
        return Value("float_opcode", 16)

    def number(self, operand: Operand) -> Value:
        """The number i of an operand ST(i)."""
        return Value("number", 8, (operand.index,))

    # -- effects -----------------------------------------------------------------------------------

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        outer, self.effects = self.effects, []
        yield
        outer.append(When(condition, self.effects))
        self.effects = outer

    def fault(self, condition: Value, vector: int, error_code: int | None = None) -> None:
        """Raise an exception if the condition holds."""
        self.effects.append(Raise(condition, vector, error_code))

    def branch(
        self,
        target: Value,
        condition: Value | None = None,
        kind: str = "jump",
        direct: bool = False,
    ) -> None:
        self.effects.append(Branch(target, condition, kind, direct))

    def microcode(self, name: str, *args: Value) -> None:
        """Hand over to the core's function of that name; it may change anything and must come
        last in a description."""
        self.effects.append(Microcode(name, args))

    def primitive(
        self,
        name: str,
        *args: Value,
        widths: tuple[int, ...],
        unit: str = "",
        of: tuple[Any, ...] = (),
    ) -> tuple[Value, ...]:
        """An operation both engines know by name; gives one value for each width."""
        results = tuple(self.temp(width) for width in widths)
        self.effects.append(Primitive(name, results, args, unit, of))
        return results

    @contextmanager
    def repeat(self, count: Operand, until: Callable[[], Value] | None = None) -> Iterator[None]:
        """The body of a REP string instruction (see effect.Repeat)."""
        outer, self.effects = self.effects, []
        yield
        stop = until() if until else None
        outer.append(Repeat(count.place, self.effects, stop))
        self.effects = outer

    # -- the stack ---------------------------------------------------------------------------------

    def stack_pointer(self) -> Operand:
        return self.register("rsp", self.form.stack_width)

    def push(self, value: Value) -> None:
        pointer = self.stack_pointer()
        top = pointer.get() - value.width // 8
        self.memory("ss", top.zero_extend(64), value.width).set(value)
        pointer.set(top)

    def pop(self, width: int) -> Value:
        pointer = self.stack_pointer()
        top = pointer.get()
        value = self.memory("ss", top.zero_extend(64), width).get()
        pointer.set(top + width // 8)
        return value
