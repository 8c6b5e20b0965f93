"""Effects of one instruction (or a fused pair) to the body of one handler.

The order that makes exceptions precise: everything that can fault happens while register and
flag writes still wait in SSA form; they are stored at the end.
"""

from __future__ import annotations

from typing import Any

from trapline.processor.flags import CcKind
from trapline.processor.jit import layout
from trapline.processor.jit.fields import Fields
from trapline.processor.jit.flags import UNKNOWN, FlagState
from trapline.processor.jit.leaving import Leaving
from trapline.processor.jit.operands import RECORD, Unsupported
from trapline.processor.jit.primitives import PRIMITIVES
from trapline.processor.jit.runtime import MOVES, STORES
from trapline.processor.jit.shape import Shape
from trapline.processor.jit.text import Ssa, integer
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


class Lowering(Leaving):
    """Writes one handler."""

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
            self.dispatch(self.f.pointer(RECORD, self.start + 8 * self.fields.words))
        self._write_leave()
        return self.f.text()

    def _next_rip_of_record(self) -> Ssa:
        return self.field("next_rip", -1, whole=True)

    def _write_leave(self) -> None:
        self.f.open_block("leave")
        self.f.line("ret void")

    # -- effects -----------------------------------------------------------------------------------

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

    # -- REP ---------------------------------------------------------------------------------------

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
