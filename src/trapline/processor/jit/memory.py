"""Guest memory in native code: the TLB check inline, everything else out of line."""

from __future__ import annotations

from trapline.processor.jit import layout
from trapline.processor.jit.text import Function, Ssa, integer

_TAGS = {
    layout.Access.READ: layout.TAG_READ,
    layout.Access.WRITE: layout.TAG_WRITE,
    layout.Access.LOCK: layout.TAG_LOCK,
}
_SLOW = {
    layout.Access.READ: "trapline_slow_read",
    layout.Access.WRITE: "trapline_slow_write",
    layout.Access.LOCK: "trapline_slow_lock",
}


class Window:
    """Host memory that stands for a guest operand during one access.

    `borrowed` (i1): it is the bounce buffer, and must be given back after a write.
    """

    __slots__ = ("host", "borrowed", "linear", "size", "access")

    def __init__(self, host: Ssa, borrowed: Ssa, linear: Ssa, size: int, access: int) -> None:
        self.host, self.borrowed, self.linear = host, borrowed, linear
        self.size, self.access = size, access


def within_line(f: Function, linear: Ssa, size: int) -> Ssa:
    """Whether an operand lies within one cache line; in write-back memory (which TAG_LOCK
    stands for) locking it is then no bus lock.  The whole cost of detection is here."""
    offset = f.op("and", linear, integer(63, 64))
    return f.compare("ule", offset, integer(64 - size, 64))


class MemoryWriter:
    """Writes memory accesses into one handler."""

    def __init__(self, function: Function, leave: str) -> None:
        self.f = function
        self._leave = leave  # the block that returns to Python, everything noted already

    def entry(self, linear: Ssa) -> Ssa:
        """The TLB entry that would hold a linear address."""
        f = self.f
        page = f.op("lshr", linear, integer(12, 64))
        index = f.op("and", page, integer(layout.TLB_INDEX_MASK, 64))
        scaled = f.op("shl", index, integer(layout.TLB_ENTRY.bit_length() - 1, 64))
        return f.pointer(Ssa("%t", "ptr"), scaled)

    def open(self, linear: Ssa, size: int, access: layout.Access) -> Window:
        """Translate and check rights; leaves the handler if that cannot be done natively."""
        f = self.f
        entry = self.entry(linear)
        tag = f.load("i64", f.pointer(entry, _TAGS[access]))
        last = f.op("add", linear, integer(size - 1, 64)) if size > 1 else linear
        hit = f.compare("eq", tag, f.op("or", last, integer(0xFFF, 64)))
        if access == layout.Access.LOCK:
            hit = f.op("and", hit, within_line(f, linear, size))
        fast, slow, done = f.new_block("hit"), f.new_block("miss"), f.new_block("open")
        f.branch(hit, fast, slow, likely=True)
        f.open_block(slow)
        name = _SLOW[access]
        found = f.value("ptr", f"call ptr @{name}(ptr %s, ptr %r, ptr %t, {linear}, i64 {size})")
        missing = f.compare("eq", Ssa(found.name, "ptr"), Ssa("null", "ptr"))
        f.branch(missing, self._leave, done, likely=False)
        f.open_block(fast)
        addend = f.load("i64", f.pointer(entry, layout.ADDEND))
        direct = f.value("ptr", f"inttoptr {f.op('add', linear, addend)} to ptr")
        f.jump(done)
        f.open_block(done)
        host = f.phi("ptr", (direct, fast), (found, slow))
        borrowed = f.phi("i1", (integer(0, 1), fast), (integer(1, 1), slow))
        return Window(host, borrowed, linear, size, access)

    def close(self, window: Window) -> None:
        """After a write: give a borrowed buffer back to the pages it stands for."""
        f = self.f
        give, done = f.new_block("give"), f.new_block("closed")
        f.branch(window.borrowed, give, done, likely=False)
        f.open_block(give)
        name = "trapline_end_lock" if window.access == layout.Access.LOCK else "trapline_end_write"
        f.line(f"call void @{name}(ptr %s, ptr %r, ptr %t, {window.linear}, i64 {window.size})")
        f.jump(done)
        f.open_block(done)

    def exchange_loop(self, window: Window, width: int, change: object) -> Ssa:
        """The update of a locked operand: compare-and-exchange until nobody came between.

        `change` is a function from the value before to the value after, both Ssa.
        """
        f, kind = self.f, f"i{width}"
        assert callable(change)
        first = f.load(kind, window.host)
        before_label, loop, done = f.label, f.new_block("try"), f.new_block("did")
        f.jump(loop)
        f.open_block(loop)
        again = f.new_block("again")
        phi_at = len(f._current)
        seen = f.value(kind, "")
        after = change(seen)
        found, same = self._compare_exchange(window.host, seen, after, width)
        f.branch(same, done, again, likely=True)
        f.open_block(again)
        f.jump(loop)
        f._blocks[loop][phi_at] = (
            f"  {seen.name} = phi {kind} [ {first.name}, %{before_label} ], "
            f"[ {found.name}, %{again} ]"
        )
        f.open_block(done)
        return seen

    def _compare_exchange(self, host: Ssa, seen: Ssa, after: Ssa, width: int) -> tuple[Ssa, Ssa]:
        """LOCK CMPXCHG on the host; inline assembly, since the operand may be misaligned."""
        f = self.f
        if width == 128:
            return self._compare_exchange_16(host, seen, after)
        suffix, kind = {8: "b", 16: "w", 32: "l", 64: "q"}[width], f"i{width}"
        pair = f.value(
            f"{{{kind}, i8}}",
            f'call {{{kind}, i8}} asm sideeffect "lock cmpxchg{suffix} $3, ($2)\\0A\\09sete $1", '
            f'"={{ax}},=q,r,q,0,~{{memory}},~{{flags}}"(ptr {host.name}, {after}, {seen})',
        )
        found = f.value(kind, f"extractvalue {pair}, 0")
        byte = f.value("i8", f"extractvalue {pair}, 1")
        return found, f.cast("trunc", byte, "i1")

    def _compare_exchange_16(self, host: Ssa, seen: Ssa, after: Ssa) -> tuple[Ssa, Ssa]:
        f = self.f

        def halves(value: Ssa) -> tuple[Ssa, Ssa]:
            high = f.op("lshr", value, integer(64, 128))
            return f.cast("trunc", value, "i64"), f.cast("trunc", high, "i64")

        (seen_low, seen_high), (low, high) = halves(seen), halves(after)
        three = f.value(
            "{i64, i64, i8}",
            'call {i64, i64, i8} asm sideeffect "lock cmpxchg16b ($3)\\0A\\09sete $2", '
            '"={ax},={dx},=q,r,{bx},{cx},0,1,~{memory},~{flags}"'
            f"(ptr {host.name}, {low}, {high}, {seen_low}, {seen_high})",
        )
        parts = [f.value("i64", f"extractvalue {three}, {i}") for i in (0, 1)]
        byte = f.value("i8", f"extractvalue {three}, 2")
        wide = [f.cast("zext", part, "i128") for part in parts]
        found = f.op("or", wide[0], f.op("shl", wide[1], integer(64, 128)))
        return found, f.cast("trunc", byte, "i1")
