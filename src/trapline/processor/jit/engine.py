"""The fast engine: finds blocks, enters native code, and does what it came back for.

`run` returns at an instruction boundary; a fault leaves `state.rip` at the faulting instruction.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, Protocol

from trapline.arch.descriptor import AR_DB, AR_L
from trapline.arch.registers import EFER_LMA
from trapline.processor.fault import Fault
from trapline.processor.jit import layout
from trapline.processor.jit.blocks import Block, CodeCache, mode_key, native_of
from trapline.processor.jit.jump_cache import JumpCache
from trapline.processor.jit.layout import Native
from trapline.processor.memory import NonCanonical
from trapline.processor.memory.host import QUADS
from trapline.processor.state import INDEX

if TYPE_CHECKING:
    from trapline.processor.decode import Decoded
    from trapline.processor.memory import Memory
    from trapline.processor.state import State

_MASK = (1 << layout.JUMP_CACHE_BITS) - 1
_REASON, _RECORD = INDEX["exit_reason"], INDEX["exit_record"]
_DETAIL, _SIZE = INDEX["exit_detail"], INDEX["exit_size"]
_RIP, _EXIT_RIP, _NEXT = INDEX["rip"], INDEX["exit_rip"], INDEX["next_record"]
_CS_BASE, _CS_LIMIT = INDEX["cs_base"], INDEX["cs_limit"]
_CPL, _JUMP_CACHE, _TLB = INDEX["cpl"], INDEX["jump_cache"], INDEX["tlb"]
_MXCSR, _FCW, _EFER = INDEX["mxcsr"], INDEX["fcw"], INDEX["efer"]
_CR0, _CR4, _ATTENTION = INDEX["cr0"], INDEX["cr4"], INDEX["attention"]
_CS_ATTRIBUTES, _SS_ATTRIBUTES = INDEX["cs_attributes"], INDEX["ss_attributes"]
_FETCH, _READ, _WRITE = 4, 1, 2
_LINK, _FAULT = int(layout.Exit.LINK), int(layout.Exit.FAULT)
_INTERPRET, _PORT = int(layout.Exit.INTERPRET), int(layout.Exit.PORT)
_UNKNOWN = (int(layout.Exit.LOOKUP), _LINK)  # no record is at hand for the next instruction
_PYTHON = (_INTERPRET, int(layout.Exit.MEMORY))  # Python is asked about an instruction


_LAST = 0xFFFFFFFF  # linear address outside 64-bit code
_LONGEST = 15  # bytes of an instruction

# Width of the code and of the stack, how much of it is native, base and limit of CS where they
# count.
_Mode = tuple[tuple[int, int], Native, int, int]


class Processor(Protocol):
    """What the engine needs of the core around it."""

    state: State
    memory: Memory

    def interpret(self, instruction: Decoded | None = None) -> None:
        """Do the instruction at state.rip (what it is, if known) on the reference engine."""

    def leave_for_port(self, qualification: int, length: int) -> NoReturn:
        """IN or OUT at state.rip leaves the guest."""

    def deny_write(self, host_page: int) -> None:
        """A host page is about to hold translated code: every processor's writes must be seen."""

    def keep_block(
        self, key: tuple[int, ...], block: Block, is_current: Callable[[], bool]
    ) -> bool:
        """Make a block findable; False if its code has been written since `deny_write`, and is
        other code now or may become so unseen."""

    def goes_on(self) -> bool:
        """Whether nothing has to be looked at before the next instruction."""

    @property
    def code_mode(self) -> tuple[int, int]:
        """Bitness of the code, width of the stack."""

    @property
    def native(self) -> layout.Native:
        """What the fast engine may run in the present mode."""


class Engine:
    """One processor's fast engine; the code cache may be shared with others."""

    def __init__(self, processor: Processor, code: CodeCache) -> None:
        self.processor, self.code = processor, code
        self.state, self.memory = processor.state, processor.memory
        self.caches = (JumpCache(), JumpCache())  # supervisor, user
        self._signature: tuple[int, ...] = ()
        self._modes: dict[tuple[int, ...], _Mode] = {}
        self._mode: _Mode | None = None
        self._nowhere = JumpCache()  # stays empty: for single steps
        self._offer_caches(*self.caches)
        enter = code.compiler.runtime["trapline_enter"]
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
        self._enter = prototype(enter)
        # Too short to be worth giving up the GIL.
        prototype = ctypes.PYFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 4)
        self._deliver = prototype(code.compiler.runtime["trapline_deliver"])
        self.entries = 0
        self._missed = (0, 0)  # what was translated last for native code: for whom, and the page
        self.generation = code.generation
        code.follow(self)

    def _offer_caches(self, supervisor: JumpCache, user: JumpCache) -> None:
        """Let native code find the jump cache of the ring it goes to."""
        self.state.jump_cache_supervisor = supervisor.address
        self.state.jump_cache_user = user.address

    def mappings_changed(self) -> None:
        """Linear addresses may lead elsewhere now."""
        for cache in self.caches:
            cache.clear()

    def drop(self, rips: list[int]) -> None:
        """Blocks at these addresses are gone."""
        for cache in self.caches:
            for rip in rips:
                cache.drop(rip)

    # -- finding blocks ----------------------------------------------------------------------------

    def find(self, rip: int) -> Block:
        """The block at a linear address; raises the fault of fetching there."""
        processor, memory = self.processor, self.memory
        linear, mode = rip, processor.code_mode
        if mode[0] != 64:
            linear = rip + self.state.cs_base & _LAST
            if self._is_near_end(rip, linear):
                return self._interpreted(rip, mode)
        where = memory.translate(linear, _FETCH)
        native = processor.native
        key = (where.host, rip, mode_key(mode, native))
        block = self.code.blocks.get(key)
        if not where.host:  # code in a device: not to be kept, and nothing after it to be touched
            return self._interpreted(rip, mode)
        if block is None:
            block = self._translate(rip, linear, where.host, mode, native)
        if block is None:
            return self._uncached(rip, linear, mode)
        cache = self.caches[self.state.cpl == 3]
        if len(block.hosts) == 1 or native:
            cache.put(rip, block.record)
        return block

    def _is_near_end(self, rip: int, linear: int) -> bool:
        """Outside 64-bit code: whether an instruction here might not lie within CS's limit, or
        go around at 4 GiB.  Nothing is to be fetched that is beyond."""
        return max(rip - self.state.q[_CS_LIMIT], linear - _LAST) > -(_LONGEST - 1)

    def _interpreted(self, rip: int, mode: tuple[int, int]) -> Block:
        """Leaves whatever is here to the reference engine, fetching included."""
        return self.code.translate(b"", rip, (0,), mode, Native.NOTHING)

    def _translate(
        self, rip: int, linear: int, host: int, mode: tuple[int, int], native: Native
    ) -> Block | None:
        room = 0x1000 - (linear & 0xFFF)
        hosts: tuple[int, ...] = (host & ~0xFFF,)
        if not self._fits(rip, linear, mode):
            native = Native.NOTHING
        key = (host, rip, mode_key(mode, native))
        block = self._make(key, hosts, lambda: self.memory.fetch(linear, room), mode)
        # Of an instruction that crosses the page's end nothing is cached by one host address.
        return block if block.instructions else None

    def _make(
        self,
        key: tuple[int, ...],
        hosts: tuple[int, ...],
        read: Callable[[], bytes],
        mode: tuple[int, int],
    ) -> Block:
        """Translate what `read` finds in these host pages, and keep it.  Another processor may
        be writing there all the while: then what it has written is translated."""
        rip, native, code = key[-2], native_of(key[-1]), b""
        block: Block | None = None
        while True:
            for host in hosts:  # first, so that no write after the reading goes unseen
                self.processor.deny_write(host)
            before, code = code, read()
            if block is None or code != before:
                block = self.code.translate(code, rip, hosts, mode, native)
            if not block.instructions:
                return block
            found = code
            if self.processor.keep_block(key, block, lambda: read() == found):  # noqa: B023
                return block

    def _fits(self, rip: int, linear: int, mode: tuple[int, int]) -> bool:
        return mode[0] == 64 or (rip & 0xFFF) == (linear & 0xFFF)

    def _uncached(self, rip: int, linear: int, mode: tuple[int, int]) -> Block:
        """An instruction on two pages.  Its block is found by both host pages."""
        first = self.memory.translate(linear, _FETCH).host
        second = self.memory.translate((linear | 0xFFF) + 1, _FETCH).host
        native = self.processor.native
        key = (first, second, rip, mode_key(mode, native))
        block = self.code.blocks.get(key)
        if block is None:
            hosts = (first & ~0xFFF, second & ~0xFFF)
            block = self._make(key, hosts, lambda: self._read_across(linear), mode)
        self.caches[self.state.cpl == 3].put(rip, block.record)
        return block

    def _read_across(self, linear: int) -> bytes:
        """The bytes of an instruction, on whatever pages."""
        code = b""
        while len(code) < _LONGEST:
            more = self.memory.fetch(linear + len(code), _LONGEST - len(code))
            if not more:
                break
            code += more
        return code

    # -- running -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until something must be looked at between two instructions."""
        q, code, processor, memory = self.state.q, self.code, self.processor, self.memory
        enter, address = self._enter, self.state.address
        record = self._record()
        while True:
            if code.generation != self.generation:
                self._follow_generation()
                record = self._record()
            self.entries += 1
            table = q[_TLB]
            enter(address, record)
            if q[_TLB] != table:  # native code went to another ring
                memory.privilege_changed()
            reason = q[_REASON]
            if reason in _UNKNOWN:
                q[_RIP] = q[_EXIT_RIP]
                # Native code does not look on its way forward.
                if q[_ATTENTION] or memory.stops and self._stops_at(q[_RIP]):
                    return
                link = q[_NEXT]
                record = self.find(q[_RIP]).record
                # Old records are still there, but must not lead to new ones.
                if reason == _LINK and code.generation == self.generation:
                    QUADS[link >> 3] = record
            elif reason in _PYTHON:
                record = q[_RECORD]
                q[_RIP] = QUADS[record + 8 >> 3]
                if reason == _INTERPRET or not self._fill():
                    processor.interpret(code.interpreted.get(record))
                    if not processor.goes_on():
                        return
                    record = self._record()
            elif reason == _FAULT:
                self._raise_fault()
            elif reason == _PORT:
                q[_RIP] = QUADS[q[_RECORD] + 8 >> 3]
                processor.leave_for_port(q[_DETAIL], q[_SIZE])
            else:  # ATTENTION, BUS_LOCK: the core's business
                q[_RIP] = q[_EXIT_RIP]
                return

    def _stops_at(self, rip: int) -> bool:
        """Whether there is a code breakpoint in the page that native code was about to enter."""
        if self.processor.code_mode[0] != 64:
            rip = rip + self.state.cs_base & _LAST
        return rip >> 12 in self.memory.stops

    def deliver(self, vector: int, error_code: int | None) -> bool:
        """Long mode: go to the handler of an event that is not software's.  False where more has
        to be looked at than native code does: nothing has been done."""
        has_code = error_code is not None
        return bool(self._deliver(self.state.address, vector, error_code or 0, has_code))

    def _record(self) -> int:
        """The record for RIP, and the state's pointers for the present privilege."""
        self._follow_mode()
        q = self.state.q
        cache = self.caches[q[_CPL] == 3]
        q[_JUMP_CACHE] = cache.address
        rip = q[_RIP]
        at = 2 * ((rip ^ rip >> 12) & _MASK)  # jump_cache_index
        words = cache.words
        return words[at + 1] if words[at] == rip else self.find(rip).record

    def _follow_generation(self) -> None:
        """All blocks were dropped: so are the addresses of records kept here."""
        self.generation = self.code.generation
        self.mappings_changed()
        self.code.release()

    def _follow_mode(self) -> None:
        """Forget what the jump caches hold if it is code of another mode."""
        q = self.state.q
        efer, code = q[_EFER], q[_CS_ATTRIBUTES] & (AR_L | AR_DB)
        stack = 0 if code & AR_L and efer & EFER_LMA else q[_SS_ATTRIBUTES] & AR_DB
        signature = (q[_MXCSR] & 0x1F80, q[_FCW] & 0x3F, q[_CR0], q[_CR4], efer, code, stack)
        if signature == self._signature:
            return
        mode = self._modes.get(signature)
        if mode is None:
            bits = self.processor.code_mode
            # Segments are not in the signature: only 64-bit code does without.  The caches know
            # offsets within CS, checked against its limit, so base and limit are of the mode.
            base, limit = (0, 0) if bits[0] == 64 else (q[_CS_BASE], q[_CS_LIMIT])
            mode = (bits, self.processor.native, base, limit)
            if bits[0] == 64:
                self._modes[signature] = mode
        if mode != self._mode:
            self._mode = mode
            self.mappings_changed()
        self._signature = signature if mode[0][0] == 64 else ()

    def step(self) -> bool:
        """Exactly one instruction natively, for tests; False if the reference engine did it.

        A REP instruction stops after the iterations that could be done."""
        state, q = self.state, self.state.q
        processor, rip = self.processor, q[_RIP]
        mode = processor.code_mode
        linear = rip if mode[0] == 64 else rip + self.state.cs_base & _LAST
        if mode[0] != 64 and self._is_near_end(rip, linear):
            processor.interpret()
            return False
        code = self.memory.fetch(linear, _LONGEST)
        host = self.memory.translate(linear, _FETCH).host & ~0xFFF
        native = processor.native
        block = self.code.translate(code, rip, (host, host), mode, native, limit=1)
        state.jump_cache = self._nowhere.address
        self._offer_caches(self._nowhere, self._nowhere)
        try:
            return self._step(block.record)
        finally:
            self._offer_caches(*self.caches)

    def _step(self, record: int) -> bool:
        state, q, processor = self.state, self.state.q, self.processor
        rip = q[_RIP]
        while True:
            self._enter(state.address, record)
            self.memory.privilege_changed()
            reason = q[_REASON]
            if reason == layout.Exit.MEMORY and self._fill():
                continue
            if reason in (layout.Exit.MEMORY, layout.Exit.INTERPRET):
                q[_RIP] = rip
                processor.interpret()
                return False
            if reason == layout.Exit.FAULT:
                self._raise_fault()
            if reason == layout.Exit.PORT:
                processor.leave_for_port(q[_DETAIL], q[_SIZE])
            q[_RIP] = q[_EXIT_RIP]
            return True

    def _raise_fault(self) -> None:
        q = self.state.q
        q[_RIP] = QUADS[q[_RECORD] + 8 >> 3]
        detail = self.state.exit_detail
        code = detail >> 8 & 0xFFFFFFFF if detail >> 40 & 1 else None
        raise Fault(detail & 0xFF, code)

    def _displaces(self, page: int) -> bool:
        """Whether an instruction that waits for this page has just been given another in the same
        place of the table: it needs both, and native code would go from one to the other for
        ever.  (Otherwise what it misses next comes after this, so that it does go on.)"""
        record, other = self._missed
        self._missed = self.state.q[_RECORD], page
        is_same = record == self._missed[0] and page != other
        return is_same and not (page ^ other) & layout.TLB_INDEX_MASK

    def _fill(self) -> bool:
        """Put the page native code missed into its TLB; False: it must not be accessed so."""
        state = self.state
        access = state.exit_detail
        kind = _READ if access == layout.Access.READ else _READ | _WRITE
        if access == layout.Access.WRITE:
            kind = _WRITE
        linear = state.exit_linear
        last = linear + state.exit_size - 1
        if linear >> 32 != last >> 32 or last >> 32 and self.processor.code_mode[0] != 64:
            return False  # perhaps beyond the segment's end, which comes before any page
        if self._displaces(linear >> 12):
            return False
        try:
            if not self.memory.fill(linear, kind):
                return False
        except NonCanonical:
            return False  # #GP or #SS: the reference engine knows the segment
        if access == layout.Access.LOCK:
            at = state.tlb + layout.TLB_ENTRY * (linear >> 12 & layout.TLB_INDEX_MASK)
            return bool(QUADS[at + layout.TAG_LOCK >> 3] == linear | 0xFFF)
        return True
