"""A way through native code for the usual case: it asks everything first, then does everything.

Whatever a shortcut cannot answer for is left, with nothing done, to the plain way that it stands
beside.
"""

from __future__ import annotations

from trapline.arch.descriptor import AR_DESCRIPTOR, AR_G
from trapline.processor.jit import layout
from trapline.processor.jit.text import Function, Ssa, integer
from trapline.processor.state import OFFSET

STATE = Ssa("%s", "ptr")


class Shortcut:
    """One being written: `require` all that must hold, then `put`.

    `give_up` is what it does where something does not hold.
    """

    def __init__(self, header: str, *give_up: str) -> None:
        self.f = Function(header)
        self._give_up = give_up

    def get(self, name: str, type_: str = "i64") -> Ssa:
        """What a slot of the state holds."""
        return self.f.load(type_, self.f.pointer(STATE, OFFSET[name]))

    def put(self, name: str, word: Ssa | int) -> None:
        word = integer(word, 64) if isinstance(word, int) else word
        self.f.store(word, self.f.pointer(STATE, OFFSET[name]))

    def both(self, word: Ssa, mask: int) -> Ssa:
        return self.f.op("and", word, integer(mask, 64))

    def either(self, word: Ssa, bits: int) -> Ssa:
        return self.f.op("or", word, integer(bits, 64))

    def plus(self, word: Ssa, number: int) -> Ssa:
        return self.f.op("add", word, integer(number, 64))

    def shifted(self, word: Ssa, count: int) -> Ssa:
        """To the right."""
        return self.f.op("lshr", word, integer(count, 64))

    def has(self, word: Ssa, mask: int, wanted: int) -> Ssa:
        """Whether the bits under a mask are these."""
        return self.f.compare("eq", self.both(word, mask), integer(wanted, 64))

    def require(self, condition: Ssa) -> None:
        on = self.f.new_block("on")
        self.f.branch(condition, on, "give_up")
        self.f.open_block(on)

    def require_bits(self, word: Ssa, mask: int, wanted: int) -> None:
        self.require(self.has(word, mask, wanted))

    def require_most(self, word: Ssa, most: Ssa | int) -> None:
        """Unsigned."""
        most = integer(most, 64) if isinstance(most, int) else most
        self.require(self.f.compare("ule", word, most))

    def host(self, table: Ssa, linear: Ssa, size: int, tag: int = layout.TAG_READ) -> Ssa:
        """Where on the host the bytes are; they must be at hand for the access, in one page."""
        f = self.f
        self.require_most(self.both(linear, 0xFFF), 0x1000 - size)
        index = self.both(self.shifted(linear, 12), layout.TLB_INDEX_MASK)
        entry = f.pointer(table, f.op("mul", index, integer(layout.TLB_ENTRY, 64)))
        found = f.load("i64", f.pointer(entry, tag))
        self.require(f.compare("eq", found, self.either(linear, 0xFFF)))
        addend = f.load("i64", f.pointer(entry, layout.ADDEND))
        return f.value("ptr", f"inttoptr {f.op('add', linear, addend)} to ptr")

    def descriptor(self, selector: Ssa, mask: int, wanted: int) -> Ssa:
        """The GDT's descriptor for a selector whose TI is clear; its rights must be as wanted."""
        f = self.f
        self.require(f.compare("ne", self.both(selector, 0xFFFC), integer(0, 64)))
        self.require_most(self.either(selector, 7), self.get("gdtr_limit"))
        linear = f.op("add", self.get("gdtr_base"), self.both(selector, 0xFFF8))
        descriptor = f.load("i64", self.host(self.get("tlb_supervisor", "ptr"), linear, 8))
        self.require_bits(descriptor, mask << 40, wanted << 40)
        return descriptor

    def fill(self, name: str, selector: Ssa, descriptor: Ssa) -> None:
        """segment.fill(), arch.descriptor.parse_segment(): a segment register from the table."""
        f = self.f
        low = self.both(self.shifted(descriptor, 16), 0xFFFFFF)
        high = f.op("shl", self.shifted(descriptor, 56), integer(24, 64))
        limit_low = self.both(descriptor, 0xFFFF)
        limit = f.op("or", limit_low, self.both(self.shifted(descriptor, 32), 0xF0000))
        pages = self.either(f.op("shl", limit, integer(12, 64)), 0xFFF)
        self.put(f"{name}_selector", selector)
        self.put(f"{name}_base", f.op("or", low, high))
        in_bytes = self.has(descriptor, AR_G << 40, 0)
        self.put(f"{name}_limit", f.select(in_bytes, limit, pages))
        self.put(f"{name}_attributes", self.both(self.shifted(descriptor, 40), AR_DESCRIPTOR))

    def enter_ring(self, cpl: int) -> tuple[Ssa, Ssa]:
        """CPL 0 or 3, RFLAGS.AC being clear; the ring's translations and its jump cache."""
        ring = "user" if cpl else "supervisor"
        table, cache = self.get(f"tlb_{ring}", "ptr"), self.get(f"jump_cache_{ring}", "ptr")
        self.put("cpl", cpl)
        self.put("tlb", table)
        self.put("jump_cache", cache)
        return table, cache

    def text(self) -> str:
        self.f.open_block("give_up")
        for line in self._give_up:
            self.f.line(line)
        return self.f.text()
