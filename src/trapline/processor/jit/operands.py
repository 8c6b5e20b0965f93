"""Where a handler finds its operands: fields of the record, addresses, registers.

Register writes wait in SSA form until `_store_registers`; flags are in `flags`.
"""

from __future__ import annotations

from typing import Any

from trapline.arch.registers import FSW_TOP_SHIFT
from trapline.processor.jit import layout
from trapline.processor.jit.fields import Fields
from trapline.processor.jit.flags import FlagWriter
from trapline.processor.jit.memory import MemoryWriter
from trapline.processor.jit.shape import Shape
from trapline.processor.jit.text import Function, Ssa, integer
from trapline.processor.jit.values import ValueWriter
from trapline.processor.language import Place, Value
from trapline.processor.state import GPR_NAMES, OFFSET, X87_OFFSET, XMM_OFFSET

STATE, RECORD = Ssa("%s", "ptr"), Ssa("%r", "ptr")
_GENERAL = frozenset(GPR_NAMES)
_WITH_BASE = ("cs", "fs", "gs")  # the others' is 0 where code outside 64-bit mode is native
_NOWHERE = 62  # a bit that makes an address non-canonical


class Unsupported(Exception):
    """This form is for the reference engine."""


class Operands:
    """One handler being written: what it reads, and what it will store."""

    def __init__(self, symbol: str, incoming_flags: int) -> None:
        self.f = Function(f"define {layout.HANDLER} @{symbol}{layout.PARAMETERS} nounwind")
        self.values = ValueWriter(self.f)
        self.memory = MemoryWriter(self.f, "leave")
        self.flags = FlagWriter(self.f, STATE, incoming_flags)
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

    # -- fields and addresses ----------------------------------------------------------------------

    def _record(self, byte_offset: int) -> Ssa:
        return self.f.pointer(RECORD, self.start + byte_offset)

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
        return self.f.load("i64", self.f.pointer(STATE, offset))

    def slot(self, name: str) -> Ssa:
        """A state slot as i64."""
        return self.f.load("i64", self.f.pointer(STATE, OFFSET[name]))

    def linear(self, place: Place) -> Ssa:
        """The linear address of a memory place."""
        assert place.address is not None
        segment = place.segment
        if isinstance(segment, int):
            segment = self.shape.segments[segment]
        offset = self.special(place.address) or self.values.value(place.address)
        total = self._based(segment, offset)
        if self.shape.bitness == 64 or segment not in _WITH_BASE or place.width == 8:
            return total
        # The limit is 4 GiB - 1: an operand that goes on beyond gets an address no page is at.
        last = self.f.op("add", offset, integer(place.width // 8 - 1, 64))
        beyond = self.f.op("and", last, integer(1 << 32, 64))
        return self.f.op("or", total, self.f.op("shl", beyond, integer(_NOWHERE - 32, 64)))

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

    # -- registers ---------------------------------------------------------------------------------

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
                return f.pointer(STATE, OFFSET[name])
            case ("fixed", index):
                return f.pointer(STATE, XMM_OFFSET + 16 * index)
            case ("x87", index):
                return f.pointer(STATE, X87_OFFSET + 16 * index)
            case ("mmx", operand):
                number = self.field("number", operand)
                scaled = f.op("shl", number, integer(4, 64))
                return f.pointer(f.pointer(STATE, X87_OFFSET), scaled)
            case ("st" | "st operand", _):
                return self._stack_register(key)
            case (_, operand):
                return f.pointer(STATE, self.field("offset", operand))
        raise Unsupported(str(key))

    def _stack_register(self, key: tuple[Any, ...]) -> Ssa:
        """ST(i) by TOP as it was when the instruction began."""
        known = self._special.get(key)
        if known is None:
            f, (kind, index) = self.f, key
            number = self.field("number", index) if kind == "st operand" else integer(index, 64)
            status = f.load("i16", f.pointer(STATE, OFFSET["fsw"]))
            top = f.op("lshr", f.cast("zext", status, "i64"), integer(FSW_TOP_SHIFT, 64))
            physical = f.op("and", f.op("add", top, number), integer(7, 64))
            scaled = f.op("shl", physical, integer(4, 64))
            known = self._special[key] = f.pointer(f.pointer(STATE, X87_OFFSET), scaled)
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
