"""Effects of one instruction (or a fused pair) to the body of one handler.

The order that makes exceptions precise: everything that can fault happens while register and
flag writes still wait in SSA form; they are stored at the end.
"""

from __future__ import annotations

from typing import Any

from trapline.arch.registers import FSW_TOP_SHIFT
from trapline.processor.flags import CcKind
from trapline.processor.jit import layout
from trapline.processor.jit.bulk import MOVES, STORES
from trapline.processor.jit.fields import Fields
from trapline.processor.jit.flags import UNKNOWN, FlagState, FlagWriter
from trapline.processor.jit.memory import MemoryWriter
from trapline.processor.jit.primitives import PRIMITIVES
from trapline.processor.jit.shape import Shape
from trapline.processor.jit.text import Function, Ssa, integer
from trapline.processor.jit.values import ValueWriter
from trapline.processor.language import (
    Branch,
    Effect,
    FlagBits,
    Flags,
    Place,
    Primitive,
    Raise,
    Read,
    Repeat,
    Update,
    Value,
    When,
    Write,
)
from trapline.processor.state import GPR_NAMES, OFFSET, X87_OFFSET, XMM_OFFSET

_STATE, _RECORD = Ssa("%s", "ptr"), Ssa("%r", "ptr")
_GENERAL = frozenset(GPR_NAMES)


class Unsupported(Exception):
    """This form is for the reference engine."""


class Lowering:
    """Writes one handler."""

    def __init__(self, symbol: str, incoming_flags: int) -> None:
        self.f = Function(f"define {layout.HANDLER} @{symbol}{layout.PARAMETERS} nounwind")
        self.values = ValueWriter(self.f)
        self.memory = MemoryWriter(self.f, "leave")
        self.flags = FlagWriter(self.f, _STATE, incoming_flags)
        self.fields = Fields()
        self.pending: dict[tuple[Any, ...], Ssa] = {}
        self.shape: Shape
        self.start = 0  # byte offset of the current instruction's record
        self.keep_flags = True
        self._offsets: dict[tuple[str, int], Ssa] = {}
        self._special: dict[tuple[str, int], Ssa] = {}
        self._locks: list[Ssa] = []
        self._done = False
        self._uses_leave = True

    # -- one instruction ---------------------------------------------------------------------------

    def instruction(
        self, shape: Shape, effects: list[Effect], fields: Fields, start: int, keep_flags: bool
    ) -> None:
        """Lower one instruction whose record begins `start` bytes after %r."""
        if start:
            self._store_registers()  # the one before is complete; its flags stay in SSA form
            self.flags.store()
        self.shape, self.fields, self.start, self.keep_flags = shape, fields, start, keep_flags
        self._offsets, self._special = {}, {}
        self.values.temps = {}
        self.values.restore({})
        self.effects(effects)

    def finish(self) -> str:
        """Go on with the record that follows; the text of the handler."""
        if not self._done:
            self.commit()
            self.leave_if_bus_locked(self._next_rip_of_record)
            # Nothing can ask for a field any more, so the record's length is known.
            self.dispatch(self.f.pointer(_RECORD, self.start + 8 * self.fields.words))
        self._write_leave()
        return self.f.text()

    def _next_rip_of_record(self) -> Ssa:
        return self.field("next_rip", -1, whole=True)

    def _write_leave(self) -> None:
        self.f.open_block("leave")
        self.f.line("ret void")

    # -- fields and addresses ----------------------------------------------------------------------

    def _record(self, byte_offset: int) -> Ssa:
        return self.f.pointer(_RECORD, self.start + byte_offset)

    def field(self, name: str, operand: int, whole: bool = False) -> Ssa:
        """A field of the record as i64.  Loaded in the entry block's order of use."""
        key = (name, operand)
        known = self._offsets.get(key)
        if known is None:
            note = ", !invariant.load !0"
            if whole:
                at = self.fields.word(name, operand)
                known = self.f.load("i64", self._record(at), note)
            else:
                at = self.fields.half(name, operand)
                known = self.f.cast("zext", self.f.load("i16", self._record(at), note), "i64")
            self._offsets[key] = known
        return known

    def offset_address(self, operand: int) -> Ssa:
        """The offset within its segment that a memory operand names."""
        key = ("ea", operand)
        known = self._special.get(key)
        if known is not None:
            return known
        f, kind = self.f, self.shape.addresses[operand]
        total = self.field("displacement", operand, whole=True)
        if "b" in kind:
            total = f.op("add", self._slot_at(self.field("base", operand)), total)
        if "x" in kind:
            index = self._slot_at(self.field("index", operand))
            total = f.op("add", total, f.op("shl", index, self.field("scale", operand)))
        if self.shape.address_widths[operand] != 64:
            mask = (1 << self.shape.address_widths[operand]) - 1
            total = f.op("and", total, integer(mask, 64))
        self._special[key] = total
        return total

    def _slot_at(self, offset: Ssa) -> Ssa:
        return self.f.load("i64", self.f.pointer(_STATE, offset))

    def slot(self, name: str) -> Ssa:
        """A state slot as i64."""
        return self.f.load("i64", self.f.pointer(_STATE, OFFSET[name]))

    def linear(self, place: Place) -> Ssa:
        """The linear address of a memory place."""
        assert place.address is not None
        segment = place.segment
        if isinstance(segment, int):
            segment = self.shape.segments[segment]
        offset = self.special(place.address) or self.values.value(place.address)
        return self._based(segment, offset)

    def _based(self, segment: str, offset: Ssa) -> Ssa:
        if self.shape.bitness == 64 and segment not in ("fs", "gs"):
            return offset
        total = self.f.op("add", offset, self.slot(segment + "_base"))
        if self.shape.bitness != 64:
            total = self.f.op("and", total, integer(0xFFFFFFFF, 64))
        return total

    def special(self, value: Value) -> Ssa | None:
        """Values only the handler knows."""
        if value.op == "ea":
            return self.offset_address(value.args[0])
        if value.op == "linear":
            operand = value.args[0]
            return self._based(self.shape.segments[operand], self.offset_address(operand))
        if value.op == "next_rip":
            return self.field("next_rip", -1, whole=True)
        if value.op == "rip":
            return self.f.load("i64", self._record(8), ", !invariant.load !0")
        if value.op == "float_opcode":
            return self.f.cast("trunc", self.field("float_opcode", -1), "i16")
        if value.op == "number":
            return self.f.cast("trunc", self.field("number", value.args[0]), "i8")
        return None

    def value(self, value: Value) -> Ssa:
        """Any value of the language."""
        self._prepare(value)
        return self.values.value(value)

    def _prepare(self, value: Value) -> None:
        """Put the special values below this one where the value writer finds them."""
        known = self.values._known
        if id(value) in known:
            return
        special = self.special(value)
        if special is not None:
            known[id(value)] = special
            self.values._kept.append(value)
            return
        for arg in value.args:
            if isinstance(arg, Value):
                self._prepare(arg)

    # -- registers -----------------------------------------------------------------------------------

    def _key(self, place: Place) -> tuple[Any, ...]:
        """What identifies a register place; partial registers share their register's key."""
        if place.kind == "operand":
            kind = self.shape.kinds[place.index]
            if kind == "reg" and self.shape.high_bytes[place.index]:
                return ("high", place.index)
            return ("st operand" if kind == "st" else kind, place.index)
        if place.kind == "register":
            return ("slot", place.name)
        return (place.kind, place.index)

    def _location(self, key: tuple[Any, ...]) -> Ssa:
        """A pointer to a register in the state."""
        f = self.f
        match key:
            case ("slot", name):
                return f.pointer(_STATE, OFFSET[name])
            case ("fixed", index):
                return f.pointer(_STATE, XMM_OFFSET + 16 * index)
            case ("x87", index):
                return f.pointer(_STATE, X87_OFFSET + 16 * index)
            case ("mmx", operand):
                number = self.field("number", operand)
                scaled = f.op("shl", number, integer(4, 64))
                return f.pointer(f.pointer(_STATE, X87_OFFSET), scaled)
            case ("st" | "st operand", _):
                return self._stack_register(key)
            case (_, operand):
                return f.pointer(_STATE, self.field("offset", operand))
        raise Unsupported(str(key))

    def _stack_register(self, key: tuple[Any, ...]) -> Ssa:
        """ST(i) by TOP as it was when the instruction began."""
        known = self._special.get(key)
        if known is None:
            f, (kind, index) = self.f, key
            number = self.field("number", index) if kind == "st operand" else integer(index, 64)
            status = f.load("i16", f.pointer(_STATE, OFFSET["fsw"]))
            top = f.op("lshr", f.cast("zext", status, "i64"), integer(FSW_TOP_SHIFT, 64))
            physical = f.op("and", f.op("add", top, number), integer(7, 64))
            scaled = f.op("shl", physical, integer(4, 64))
            known = self._special[key] = f.pointer(f.pointer(_STATE, X87_OFFSET), scaled)
        return known

    def read(self, place: Place) -> Ssa:
        """The value of a place."""
        f, kind = self.f, f"i{place.width}"
        if place.kind == "memory":
            window = self.memory.open(self.linear(place), place.width // 8, layout.Access.READ)
            return f.load(kind, window.host)
        if place.kind == "flag":
            return self.flags.read(place.name)
        if place.kind == "xmm":
            place = Place("xmm", place.width, place.index)
            return self._read_register(("fixed", place.index), kind)
        if place.kind == "operand" and self.shape.kinds[place.index] in ("imm", "branch"):
            word = self.field("immediate", place.index, whole=True)
            return f.cast("trunc", word, kind)
        return self._read_register(self._key(place), kind)

    def _read_register(self, key: tuple[Any, ...], kind: str) -> Ssa:
        pending = self.pending.get(key)
        if pending is None:
            return self.f.load(kind, self._location(key))
        if pending.width >= int(kind[1:]):
            return self.f.cast("trunc", pending, kind)
        whole = self.f.load(kind, self._location(key))
        mask = (1 << pending.width) - 1
        kept = self.f.op("and", whole, integer(~mask, whole.width))
        return self.f.op("or", kept, self.f.cast("zext", pending, kind))

    def _is_general(self, key: tuple[Any, ...]) -> bool:
        return key[0] == "reg" or (key[0] == "slot" and key[1] in _GENERAL)

    def write(self, place: Place, value: Ssa) -> None:
        if place.kind == "memory":
            window = self.memory.open(self.linear(place), place.width // 8, layout.Access.WRITE)
            self.f.store(value, window.host)
            self.memory.close(window)
            return
        key = ("fixed", place.index) if place.kind == "xmm" else self._key(place)
        self._touch(key)
        width = value.width
        if self._is_general(key) and width != 64:
            if width == 32:  # SDM 1, 3.4.1.1: a 32-bit result clears the upper half
                value = self.f.cast("zext", value, "i64")
            else:
                value = self._merged(self._read_register(key, "i64"), value)
        elif key in self.pending and self.pending[key].width > width:
            value = self._merged(self.pending[key], value)
        self.pending.pop(key, None)
        self.pending[key] = value

    def _touch(self, key: tuple[Any, ...]) -> None:
        """Load the fields a commit will need while still in a dominating block."""
        if key[0] in ("st", "st operand"):
            self._stack_register(key)
        elif key[0] not in ("slot", "fixed", "x87"):
            self.field("number" if key[0] == "mmx" else "offset", key[1])

    def _merged(self, whole: Ssa, low: Ssa) -> Ssa:
        f, width = self.f, whole.width
        kept = f.op("and", whole, integer(-1 << low.width, width))
        return f.op("or", kept, f.cast("zext", low, whole.type))

    def commit(self) -> None:
        """Register and flag writes become visible."""
        self._store_registers()
        self.flags.commit()

    def _store_registers(self) -> None:
        for key, value in self.pending.items():
            self.f.store(value, self._location(key))
        self.pending.clear()

    # -- effects -------------------------------------------------------------------------------------

    def effects(self, effects: list[Effect]) -> None:
        temps = self.values.temps
        for effect in effects:
            match effect:
                case Read(result, place):
                    self._place_address(place)
                    temps[result.args[0]] = self.read(place)
                case Write(place, value):
                    self._place_address(place)
                    self.write(place, self.value(value))
                case Update():
                    self._place_address(effect.place)
                    self.update(effect)
                case Flags(rule, width, dst, src):
                    self.set_lazy(rule, width, dst, src)
                case FlagBits(bits):
                    if self.keep_flags:
                        self.flags.put({name: self.value(bit) for name, bit in bits.items()})
                case When(condition, inner):
                    self.when(self.value(condition), inner)
                case Raise(condition, vector, error_code):
                    self.fault(self.value(condition), vector, error_code)
                case Primitive():
                    self.primitive(effect)
                case Branch():
                    self.branch(effect)
                case Repeat():
                    self.repeat(effect)
                case _:
                    raise Unsupported(type(effect).__name__)

    def _place_address(self, place: Place) -> None:
        if place.kind == "memory" and place.address is not None:
            self._prepare(place.address)

    def set_lazy(self, rule: str, width: int, dst: Value, src: Value) -> None:
        if not self.keep_flags:
            return
        kind = CcKind[rule] + (width >> 3).bit_length() - 1
        left = self.f.cast("sext", self.value(dst), "i64")
        right = self.f.cast("sext", self.value(src), "i64")
        self.flags.set(kind, left, right)

    def primitive(self, effect: Primitive) -> None:
        lower = PRIMITIVES.get(effect.name)
        if lower is None:
            raise Unsupported(effect.name)
        results = lower(self, effect, [self.value(arg) for arg in effect.args])
        for result, ssa in zip(effect.results, results, strict=True):
            self.values.temps[result.args[0]] = ssa

    def update(self, effect: Update) -> None:
        f, width, temp = self.f, effect.place.width, effect.before.args[0]
        access = layout.Access.LOCK if effect.locked else layout.Access.WRITE
        window = self.memory.open(self.linear(effect.place), width // 8, access)
        if effect.locked:
            self._locks.append(window.borrowed)

            def change(seen: Ssa) -> Ssa:
                outer = self.values.forget()
                self.values.temps[temp] = seen
                after = self.value(effect.after)
                self.values.restore(outer)
                return after

            before = self.memory.exchange_loop(window, width, change)
            self.values.temps[temp] = before
        else:
            before = f.load(f"i{width}", window.host)
            self.values.temps[temp] = before
            f.store(self.value(effect.after), window.host)
        self.memory.close(window)

    def fault(self, condition: Ssa, vector: int, error_code: int | None) -> None:
        f = self.f
        bad, good = f.new_block("fault"), f.new_block("fine")
        f.branch(condition, bad, good, likely=False)
        f.open_block(bad)
        detail = vector | (0 if error_code is None else 1 << 40 | error_code << 8)
        self.note_exit(layout.Exit.FAULT, detail=integer(detail, 64))
        f.line("ret void")
        f.open_block(good)

    def when(self, condition: Ssa, inner: list[Effect]) -> None:
        """A conditional block; what it writes is merged with what was there."""
        f = self.f
        keys = self._written(inner)
        before: dict[tuple[Any, ...], Ssa] = {}
        for key, width in keys.items():
            self._touch(key)
            before[key] = self._read_register(key, "i64" if self._is_general(key) else f"i{width}")
        touches_flags = self.keep_flags and self._writes_flags(inner)
        if touches_flags:
            self.flags.pin()
        outer_flags, outer_pending = self.flags.now, dict(self.pending)
        yes, done, entry = f.new_block("when"), f.new_block("after"), f.label
        f.branch(condition, yes, done)
        f.open_block(yes)
        outer = self.values.forget()
        outer_offsets, outer_special = dict(self._offsets), dict(self._special)
        self.effects(inner)
        if touches_flags:
            self.flags.pin()
        inner_label, inner_pending = f.label, self.pending
        f.jump(done)
        f.open_block(done)
        self.values.restore(outer)
        self._offsets, self._special = outer_offsets, outer_special
        self.pending = outer_pending
        for key in keys:
            merged = f.phi(
                before[key].type, (before[key], entry), (inner_pending[key], inner_label)
            )
            self.pending.pop(key, None)
            self.pending[key] = merged
        if touches_flags:
            self.flags.merge(outer_flags, inner_label, entry)

    def _written(self, effects: list[Effect]) -> dict[tuple[Any, ...], int]:
        """The register places a list of effects writes, with their widths."""
        keys: dict[tuple[Any, ...], int] = {}
        for effect in effects:
            match effect:
                case Write(place, _) if place.kind != "memory":
                    key = ("fixed", place.index) if place.kind == "xmm" else self._key(place)
                    keys[key] = max(keys.get(key, 0), place.width)
                case When(_, inner):
                    keys |= self._written(inner)
                case Branch() | Repeat():
                    raise Unsupported("control flow in a condition")
        return keys

    def _writes_flags(self, effects: list[Effect]) -> bool:
        return any(
            isinstance(e, Flags | FlagBits)
            or (isinstance(e, When) and self._writes_flags(e.effects))
            for e in effects
        )

    # -- leaving the handler -----------------------------------------------------------------------

    def note_exit(
        self, reason: layout.Exit, rip: Ssa | None = None, detail: Ssa | None = None
    ) -> None:
        """Say why the handler is about to return."""
        f = self.f
        f.store(integer(reason, 64), f.pointer(_STATE, OFFSET["exit_reason"]))
        f.store(f.pointer(_RECORD, self.start), f.pointer(_STATE, OFFSET["exit_record"]))
        if rip is not None:
            f.store(rip, f.pointer(_STATE, OFFSET["exit_rip"]))
        if detail is not None:
            f.store(detail, f.pointer(_STATE, OFFSET["exit_detail"]))

    def dispatch(self, record: Ssa) -> None:
        """Go on with another record."""
        f = self.f
        handler = f.load("ptr", record)
        f.line(
            f"musttail call {layout.HANDLER} {handler.name}"
            + layout.ARGUMENTS.format(record=record.name)
        )
        f.line("ret void")

    def leave_if_bus_locked(self, next_rip: Any) -> None:
        """At the end of a locked instruction: was it a bus lock somebody must know of?"""
        if not self._locks:
            return
        f = self.f
        ask, stop, go = f.new_block("ask"), f.new_block("stop"), f.new_block("go")
        f.branch(self._locks[-1], ask, go, likely=False)
        f.open_block(ask)
        seen = f.compare("ne", self.slot("bus_lock_seen"), integer(0, 64))
        f.branch(seen, stop, go, likely=False)
        f.open_block(stop)
        self.note_exit(layout.Exit.BUS_LOCK, rip=next_rip())
        f.line("ret void")
        f.open_block(go)
        self._locks.clear()

    # -- branches ------------------------------------------------------------------------------------

    def branch(self, effect: Branch) -> None:
        """Ends the instruction and the block of records."""
        condition = None if effect.condition is None else self.value(effect.condition)
        target = None if effect.direct else self.value(effect.target)
        if target is not None and self.shape.bitness != 64:
            target = self.f.op("and", target, integer(0xFFFFFFFF, 64))
        self.commit()
        if target is not None:
            self._indirect(target)
        elif condition is None:
            self._follow("taken")
        else:
            taken, fall = self.f.new_block("taken"), self.f.new_block("fall")
            self.f.branch(condition, taken, fall)
            self.f.open_block(taken)
            self._follow("taken")
            self.f.open_block(fall)
            self._follow("fall")
        self._done = True

    def _follow(self, name: str) -> None:
        """Through a link of the record; backward ones look at `attention` first."""
        f = self.f
        at = self.fields.link(name)
        if name == "taken" and self.shape.backward:
            rip = f.load("i64", self._record(at + 16))
            self._check_attention(rip)
        self.dispatch(f.load("ptr", self._record(at)))

    def _check_attention(self, rip: Ssa) -> None:
        f = self.f
        wanted = f.compare("ne", self.slot("attention"), integer(0, 64))
        stop, go = f.new_block("wanted"), f.new_block("go")
        f.branch(wanted, stop, go, likely=False)
        f.open_block(stop)
        self.note_exit(layout.Exit.ATTENTION, rip=rip)
        f.line("ret void")
        f.open_block(go)

    def _indirect(self, target: Ssa) -> None:
        """Through the jump cache."""
        f = self.f
        self._check_attention(target)
        cache = f.load("ptr", f.pointer(_STATE, OFFSET["jump_cache"]))
        entry = f.pointer(cache, jump_cache_offset(f, target))
        hit = f.compare("eq", f.load("i64", entry), target)
        go, miss = f.new_block("go"), f.new_block("miss")
        f.branch(hit, go, miss, likely=True)
        f.open_block(miss)
        self.note_exit(layout.Exit.LOOKUP, rip=target)
        f.line("ret void")
        f.open_block(go)
        self.dispatch(f.load("ptr", f.pointer(entry, 8)))

    # -- REP -----------------------------------------------------------------------------------------

    def repeat(self, effect: Repeat) -> None:
        """Iterations that commit one by one; an exit in between restarts the instruction."""
        f = self.f
        assert effect.count.kind == "register"
        self.commit()
        kind = f"i{effect.count.width}"
        head, body, done = f.new_block("head"), f.new_block("body"), f.new_block("done")
        self._touch_record_fields(effect.effects)
        f.jump(head)
        f.open_block(head)
        count = self._read_register(("slot", effect.count.name), kind)
        f.branch(f.compare("eq", count, integer(0, count.width)), done, body)
        f.open_block(body)
        self._check_attention(f.load("i64", self._record(8)))
        self._run_ahead(head)
        outer = self.values.forget()
        special, offsets = dict(self._special), dict(self._offsets)
        self.flags.now = FlagState(UNKNOWN)
        self.effects(effect.effects)
        self.write(effect.count, f.op("sub", count, integer(1, count.width)))
        stop = None if effect.until is None else self.value(effect.until)
        self.commit()
        if stop is None:
            f.jump(head)
        else:
            f.branch(stop, done, head)
        self.values.restore(outer)
        self._special, self._offsets = special, offsets
        f.open_block(done)
        self.flags.now = FlagState(UNKNOWN)

    def _run_ahead(self, head: str) -> None:
        """Many elements at once where that is the same; then look at the count again."""
        name, f = self.shape.form.name, self.f
        size = MOVES.get(name) or STORES.get(name)
        plain = self.shape.bitness == self.shape.form.address_width == 64
        if not size or not plain or any(self.shape.segments):
            return
        function = "trapline_bulk_move" if name in MOVES else "trapline_bulk_store"
        log = integer(size.bit_length() - 1, 64)
        done = f.value("i64", f"call i64 @{function}(ptr %s, ptr %t, {log})")
        one = f.new_block("one")
        f.branch(f.compare("ne", done, integer(0, 64)), head, one, likely=True)
        f.open_block(one)

    def _touch_record_fields(self, effects: list[Effect]) -> None:
        """Load before the loop what the loop reads from the record."""
        for effect in effects:
            place = getattr(effect, "place", None)
            if place is not None and place.kind == "operand":
                self._touch(self._key(place))


def jump_cache_offset(f: Function, rip: Ssa) -> Ssa:
    """Byte offset of the jump cache entry for a RIP; `engine.jump_cache_index` is the same."""
    mixed = f.op("xor", rip, f.op("lshr", rip, integer(12, 64)))
    index = f.op("and", mixed, integer((1 << layout.JUMP_CACHE_BITS) - 1, 64))
    return f.op("shl", index, integer(4, 64))
