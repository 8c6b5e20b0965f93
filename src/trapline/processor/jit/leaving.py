"""How a handler ends: on to another record, through a link or the jump cache, or back to Python."""

from __future__ import annotations

from typing import Any

from trapline.processor.jit import layout
from trapline.processor.jit.operands import RECORD, STATE, Operands
from trapline.processor.jit.text import Function, Ssa, integer
from trapline.processor.language import Branch
from trapline.processor.state import OFFSET


class Leaving(Operands):
    """Adds the ways out to a handler being written."""

    def note_exit(
        self, reason: layout.Exit, rip: Ssa | None = None, detail: Ssa | None = None
    ) -> None:
        """Say why the handler is about to return."""
        f = self.f
        f.store(integer(reason, 64), f.pointer(STATE, OFFSET["exit_reason"]))
        f.store(f.pointer(RECORD, self.start), f.pointer(STATE, OFFSET["exit_record"]))
        if rip is not None:
            f.store(rip, f.pointer(STATE, OFFSET["exit_rip"]))
        if detail is not None:
            f.store(detail, f.pointer(STATE, OFFSET["exit_detail"]))

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

    # -- branches ----------------------------------------------------------------------------------

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
        cache = f.load("ptr", f.pointer(STATE, OFFSET["jump_cache"]))
        entry = f.pointer(cache, jump_cache_offset(f, target))
        hit = f.compare("eq", f.load("i64", entry), target)
        go, miss = f.new_block("go"), f.new_block("miss")
        f.branch(hit, go, miss, likely=True)
        f.open_block(miss)
        self.note_exit(layout.Exit.LOOKUP, rip=target)
        f.line("ret void")
        f.open_block(go)
        self.dispatch(f.load("ptr", f.pointer(entry, 8)))


def jump_cache_offset(f: Function, rip: Ssa) -> Ssa:
    """Byte offset of the jump cache entry for a RIP; `jump_cache.jump_cache_index` is the same."""
    mixed = f.op("xor", rip, f.op("lshr", rip, integer(12, 64)))
    index = f.op("and", mixed, integer((1 << layout.JUMP_CACHE_BITS) - 1, 64))
    return f.op("shl", index, integer(4, 64))
