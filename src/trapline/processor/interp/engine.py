"""The reference engine: effects replayed on Python integers.  Slow, and always right.

`execute` does one decoded instruction completely or raises a fault and changes no register.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from trapline.arch.registers import FSW_TOP_SHIFT
from trapline.processor.fault import Fault, Undefined
from trapline.processor.flags import CcKind
from trapline.processor.interp.evaluate import Evaluator
from trapline.processor.interp.primitives import PRIMITIVES
from trapline.processor.language import (
    INSTRUCTIONS,
    Branch,
    Effect,
    FlagBits,
    Flags,
    FormFacts,
    Microcode,
    Place,
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
from trapline.processor.state import INDEX, OFFSET, SEGMENTS, X87_OFFSET, XMM_OFFSET
from trapline.processor.units import require, unit_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trapline.processor.decode import Bound, Decoded
    from trapline.processor.state import State

_FLAG_BITS = {"cf": 0x1, "pf": 0x4, "af": 0x10, "zf": 0x40, "sf": 0x80, "of": 0x800}
_CANONICAL = 0xFFFFFFFFFFFFFFFF
_ITERATIONS = 4096  # of a REP instruction before the boundary is looked at


class _Memory(Protocol):
    def read(self, linear: int, size: int) -> int: ...

    def write(self, linear: int, size: int, word: int) -> None: ...

    def update(
        self, linear: int, size: int, function: Callable[[int], int], locked: bool = True
    ) -> int: ...


class Host(Protocol):
    """What the engine needs of the processor it runs on."""

    state: State

    @property
    def memory(self) -> _Memory: ...

    def linearize(self, segment: str, offset: int, size: int, is_write: bool) -> int:
        """Segment:offset to a linear address, with the segment's checks."""

    def run_microcode(self, name: str, instruction: Decoded, args: Sequence[int]) -> int | None:
        """A microcode function; the new RIP, or None for the next instruction."""


def execute(host: Host, instruction: Decoded, iterations: int = _ITERATIONS) -> bool:
    """Do one instruction, RIP included.  False: a REP instruction has iterations left."""
    form = instruction.form
    known = _PREPARED.get(id(form))
    if known is None or known[0] is not form:
        if instruction.is_too_long:
            raise Fault(13, 0)  # SDM 2A, 2.3.11
        if instruction.name not in INSTRUCTIONS:
            raise Undefined(instruction.name, instruction.code)
        known = _PREPARED[id(form)] = (form, *_prepare(form))
    _, effects, function, unit = known
    if unit:
        require(host.state, unit)
    if function is not None:
        rip = host.run_microcode(function, instruction, ())
        host.state.rip = instruction.next_rip if rip is None else rip
        return True
    return _Replay(host, instruction, iterations).run(effects)


# By identity, since hashing a form costs more than finding it; the form itself is kept so that
# its identity stays its own.
_PREPARED: dict[int, tuple[FormFacts, list[Effect], str | None, str]] = {}


def _prepare(form: FormFacts) -> tuple[list[Effect], str | None, str]:
    """The recording, the name of the microcode function if that is all of it, and the unit that
    must be switched on."""
    effects, function = recording(form), None
    if len(effects) == 1 and isinstance(effects[0], Microcode) and not effects[0].args:
        function = effects[0].name
    return effects, function, unit_of(form)


class _Replay:
    """One instruction being replayed: registers to be written wait in `pending`."""

    def __init__(self, host: Host, instruction: Decoded, iterations: int) -> None:
        self.host = host
        self.iterations = iterations
        self.state = host.state
        self.instruction = instruction
        self.evaluator = Evaluator(self._special)
        self.pending: dict[int, tuple[int, int]] = {}  # byte offset -> (size, word)
        self.flags: int | None = None
        self.lazy: tuple[int, int, int] | None = None
        self.rip: int | None = None
        self.finished = True

    def run(self, effects: list[Effect]) -> bool:
        self.effects(effects)
        self.commit()
        rip = self.rip
        if not self.finished:
            return False
        self.state.rip = self.instruction.next_rip if rip is None else rip
        return True

    # -- effects -----------------------------------------------------------------------------------

    def effects(self, effects: list[Effect]) -> None:
        value = self.evaluator.value
        temps = self.evaluator.temps
        for effect in effects:
            match effect:
                case Read(result, place):
                    temps[result.args[0]] = self.read(place)
                case Write(place, source):
                    self.write(place, value(source))
                case Update():
                    self.update(effect)
                case Flags(rule, width, dst, src):
                    self.set_lazy(rule, width, dst, src)
                case FlagBits(bits):
                    self.set_bits(bits)
                case When(condition, inner):
                    if value(condition):
                        self.effects(inner)
                case Raise(condition, vector, error_code):
                    if value(condition):
                        raise Fault(vector, error_code)
                case Branch(target, condition, _, _):
                    if condition is None or value(condition):
                        self.rip = value(target)
                case Primitive():
                    words = PRIMITIVES[effect.name](
                        self.state, effect, [value(arg) for arg in effect.args]
                    )
                    for result, word in zip(effect.results, words, strict=True):
                        temps[result.args[0]] = word
                case Repeat():
                    self.repeat(effect)
                case Microcode(name, args):
                    self.microcode(name, [value(arg) for arg in args])

    def update(self, effect: Update) -> None:
        place, temp = effect.place, effect.before.args[0]

        def change(before: int) -> int:
            self.evaluator.temps[temp] = before
            return self.evaluator.value(effect.after)

        linear = self.linear(place, is_write=True)
        size = place.width >> 3
        self.evaluator.temps[temp] = self.host.memory.update(linear, size, change, effect.locked)

    def repeat(self, effect: Repeat) -> None:
        for _ in range(self.iterations):
            count = self.read(effect.count)
            if not count:
                return
            self.effects(effect.effects)
            self.write(effect.count, count - 1)
            stop = effect.until is not None and self.evaluator.value(effect.until)
            self.commit()
            self.evaluator = Evaluator(self._special)
            if stop or count == 1:
                return
        self.finished = False

    def microcode(self, name: str, words: list[int]) -> None:
        self.commit()
        self.rip = self.host.run_microcode(name, self.instruction, words)

    # -- places ------------------------------------------------------------------------------------

    def _special(self, value: Value) -> int:
        if not value.args:  # next_rip, rip, float_opcode
            return int(getattr(self.instruction, value.op))
        bound = self.instruction.operands[value.args[0]]
        if value.op == "number":
            return int(bound.number)
        offset = self.offset(bound)
        if value.op == "ea":
            return offset
        # Only the address: the access itself checks the segment, and comes later.
        bitness, segment = self.instruction.form.bitness, bound.segment
        if bitness == 64 and segment not in ("fs", "gs"):
            return offset
        mask = _CANONICAL if bitness == 64 else 0xFFFFFFFF
        return offset + int(getattr(self.state, segment + "_base")) & mask

    def offset(self, bound: Bound) -> int:
        """The offset within its segment that a memory operand names."""
        q = self.state.q
        word = q[bound.base >> 3] + (q[bound.index >> 3] << bound.scale) + bound.displacement
        return word & ((1 << bound.address_width) - 1)

    def linear(self, place: Place, is_write: bool) -> int:
        assert place.address is not None
        segment = place.segment
        if isinstance(segment, int):
            segment = self.instruction.operands[segment].segment
        offset = self.evaluator.value(place.address)
        return self.host.linearize(segment, offset, place.width >> 3, is_write)

    def register(self, place: Place) -> int:
        """The byte offset in State of a place that is not memory."""
        if place.kind == "register":
            return OFFSET[place.name]
        if place.kind == "xmm":
            return XMM_OFFSET + 16 * place.index
        if place.kind == "x87":
            return X87_OFFSET + 16 * place.index
        if place.kind == "st":
            return self.stack_register(place.index)
        bound = self.instruction.operands[place.index]
        if bound.kind == "mmx":
            return X87_OFFSET + 16 * bound.number
        if bound.kind == "st":
            return self.stack_register(bound.number)
        return bound.offset

    def stack_register(self, number: int) -> int:
        """ST(number), by TOP as the state has it: what is pending does not count."""
        return X87_OFFSET + 16 * ((self.state.fsw >> FSW_TOP_SHIFT) + number & 7)

    def read(self, place: Place) -> int:
        size = place.width >> 3
        match place.kind:
            case "memory":
                return self.host.memory.read(self.linear(place, is_write=False), size)
            case "flag":
                return int(bool(self.arithmetic_flags() & _FLAG_BITS[place.name]))
            case "operand":
                bound = self.instruction.operands[place.index]
                if bound.kind in ("imm", "branch"):
                    return bound.immediate
        offset = self.register(place)
        pending = self.pending.get(offset)
        if pending and pending[0] >= size:
            return pending[1] & ((1 << place.width) - 1)
        whole = self.state.bytes[offset : offset + size]
        word = int.from_bytes(whole, "little")
        if pending:
            low = (1 << 8 * pending[0]) - 1
            word = word & ~low | pending[1]
        return word

    def write(self, place: Place, word: int) -> None:
        size = place.width >> 3
        if place.kind == "memory":
            self.host.memory.write(self.linear(place, is_write=True), size, word)
        elif place.kind == "flag":
            raise TypeError("flags are written through cpu.flags")
        else:
            offset = self.register(place)
            if size == 4 and offset < 128:  # SDM 1, 3.4.1.1: a 32-bit result clears the upper half
                size = 8
            before = self.pending.get(offset)
            if before and before[0] > size:
                low = (1 << 8 * size) - 1
                size, word = before[0], before[1] & ~low | word
            self.pending[offset] = (size, word)

    # -- flags -------------------------------------------------------------------------------------

    def arithmetic_flags(self) -> int:
        if self.lazy is not None:
            from trapline.processor.flags import materialise

            return materialise(*self.lazy)
        return self.state.arithmetic_flags if self.flags is None else self.flags

    def set_lazy(self, rule: str, width: int, dst: Value, src: Value) -> None:
        kind = CcKind[rule] + (width >> 3).bit_length() - 1
        value = self.evaluator.value
        self.lazy = (kind, _extend(value(dst), width), _extend(value(src), width))
        self.flags = None

    def set_bits(self, bits: dict[str, Value]) -> None:
        word = self.arithmetic_flags()
        for name, source in bits.items():
            mask = _FLAG_BITS[name]
            word = word | mask if self.evaluator.value(source) else word & ~mask
        self.flags, self.lazy = word, None

    # -- the end -----------------------------------------------------------------------------------

    def commit(self) -> None:
        """Registers and flags become visible, all together."""
        state = self.state
        for offset, (size, word) in self.pending.items():
            state.bytes[offset : offset + size] = word.to_bytes(size, "little")
        self.pending.clear()
        if self.lazy is not None:
            state.cc_kind, state.cc_dst, state.cc_src = self.lazy
        elif self.flags is not None:
            state.arithmetic_flags = self.flags
        self.lazy = self.flags = None


def _extend(word: int, width: int) -> int:
    """Sign-extend to 64 bits, as cc_dst and cc_src hold it."""
    return word | -1 << width & _CANONICAL if word >> (width - 1) & 1 else word


assert len(SEGMENTS) == 8 and INDEX["rax"] == 0  # `write` relies on the registers coming first
