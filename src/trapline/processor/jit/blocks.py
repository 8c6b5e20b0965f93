"""Blocks: straight runs of guest code as records, found by host address, linear address and mode.

Shared by all processors of a machine.  A block lies within one page, or is the single
instruction that crosses a page's end.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from dataclasses import dataclass
from typing import Protocol

from trapline.processor.decode import Decoded, decode_run
from trapline.processor.jit.compiler import Handler, compiler
from trapline.processor.jit.facts import INTERPRETED, Facts, facts_of
from trapline.processor.jit.flags import UNKNOWN
from trapline.processor.jit.handlers import HandlerBook, Request
from trapline.processor.jit.layout import Native
from trapline.processor.jit.records import Arena, Draft
from trapline.processor.jit.shape import Shape, shape_of

MAX_INSTRUCTIONS = 64
_STACK_SHIFT, _NATIVE_SHIFT = 8, 16  # in a mode's key
_MOST_KNOWN = 200_000
_LONGEST = 15  # bytes of an instruction


@dataclass(slots=True)
class Block:
    """`record` is its first record's address; `hosts` the host pages its bytes lie in; `size`
    in bytes of guest code."""

    record: int
    rip: int
    hosts: tuple[int, ...]
    instructions: int
    size: int

    def places(self, host: int) -> list[tuple[int, int]]:
        """Its bytes on each page: host address and count.  `host` is where it begins."""
        room = 0x1000 - (host & 0xFFF)
        size = self.size or _LONGEST  # of something that is no instruction: what was looked at
        if len(self.hosts) == 1 or size <= room:
            return [(host, min(size, room))]
        return [(host, room), (self.hosts[1], size - room)]


def mode_key(mode: tuple[int, int], native: Native) -> int:
    """The part of a block's key that says which kind of code it is."""
    return mode[0] | mode[1] << _STACK_SHIFT | native << _NATIVE_SHIFT


def native_of(key: int) -> Native:
    """How much of the code of a mode is native."""
    return Native(key >> _NATIVE_SHIFT)


def _is_allowed(instruction: Decoded, known: Facts, native: Native) -> bool:
    """Whether an instruction is among what is native."""
    if not native or known.needs_unit and not native & Native.UNITS:
        return False
    if native & Native.FS_GS:
        return True
    places = [one for one in instruction.operands if one.kind == "mem"]
    return all(one.segment not in ("fs", "gs") for one in places)


Translated = tuple[Decoded, Facts, Shape]


class Follower(Protocol):
    """An engine, as the code cache knows it."""

    generation: int


class CodeCache:
    """All blocks of one machine, and the translator that makes them."""

    most_words = 1 << 25
    """How many words of records there may be (256 MiB) before everything is translated anew."""

    def __init__(self) -> None:
        self.compiler = compiler()
        self.book = HandlerBook(self.compiler)
        self.arena = Arena()
        self.lock = threading.RLock()
        self.blocks: dict[tuple[int, ...], Block] = {}
        self.by_page: dict[int, list[tuple[tuple[int, ...], Block]]] = {}
        self._known: dict[tuple[bytes, tuple[int, int], bool], tuple[Facts, Shape]] = {}
        self._shapes: dict[Shape, Shape] = {}
        # What the reference engine is handed, by the record it was found through.
        self.interpreted: dict[int, Decoded] = {}
        self.translated = 0
        # Engines compare this with the one they last saw before they use a record.
        self.generation = 0
        self._retired: list[tuple[int, Arena]] = []
        self._engines: weakref.WeakSet[Follower] = weakref.WeakSet()
        self._stub_lookup = self.compiler.runtime["trapline_stub_lookup"]

    # -- starting over --------------------------------------------------------------------------

    def follow(self, engine: Follower) -> None:
        """An engine uses these blocks."""
        self._engines.add(engine)

    def start_over(self) -> None:
        """Forget every block, so that a guest which keeps rewriting its code cannot fill the
        host's memory.  The records go when no engine can be inside them any more."""
        with self.lock:
            self._retired.append((self.generation, self.arena))
            self.generation += 1
            self.arena = Arena()
            self.blocks.clear()
            self.by_page.clear()
            self.interpreted.clear()

    def release(self) -> None:
        """An engine has seen the present generation: free what none needs."""
        with self.lock:
            oldest = min((engine.generation for engine in self._engines), default=0)
            self._retired = [(g, arena) for g, arena in self._retired if g >= oldest]

    # -- dropping ----------------------------------------------------------------------------------

    def drop_page(self, host_page: int) -> list[int]:
        """Forget the blocks with bytes in a host page; their RIPs."""
        with self.lock:
            dropped = self.by_page.pop(host_page, [])
            rips = []
            for key, block in dropped:
                if self.blocks.pop(key, None) is not None:
                    # Whoever is about to enter it looks its address up again.
                    ctypes.c_uint64.from_address(block.record).value = self._stub_lookup
                    rips.append(block.rip)
            return rips

    # -- translating -------------------------------------------------------------------------------

    def translate(
        self,
        code: bytes,
        rip: int,
        hosts: tuple[int, ...],
        mode: tuple[int, int],
        native: Native,
        limit: int = MAX_INSTRUCTIONS,
    ) -> Block:
        """A block from the bytes at `rip` (which reach the page's end at most, or are one
        instruction that crosses it)."""
        bitness, stack_width = mode
        crossing = len(hosts) > 1
        run: list[Translated] = []
        for instruction in decode_run(code, rip, bitness, stack_width):
            known, shape = self._look_up(instruction, mode)
            if native != Native.ALL and not _is_allowed(instruction, known, native):
                known = INTERPRETED
            run.append((instruction, known, shape))
            if known.is_branch or not known.is_native:
                break
            if crossing or len(run) >= limit:
                break
        with self.lock:
            if self.arena.used > self.most_words:
                self.start_over()
            return self._write(run, rip, hosts, mode, native)

    def _look_up(self, instruction: Decoded, mode: tuple[int, int]) -> tuple[Facts, Shape]:
        """An instruction's facts and shape follow from its bytes and the mode (as SDM 3A, 3.4.5,
        has it, CS.D and SS.B are independent), and from whether its target is canonical."""
        key = (instruction.code, mode, instruction.form.strays)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            shape = shape_of(instruction)
            shape = self._shapes.setdefault(shape, shape)
            known = self._known[key] = (facts_of(instruction), shape)
        return known

    def _requests(self, run: list[Translated]) -> list[Request | None]:
        """The handler each instruction wants; None for the second half of a fused pair."""
        keep = [True] * len(run)
        live = True
        for i in range(len(run) - 1, -1, -1):
            known = run[i][1]
            keep[i] = live
            if known.kills_flags:
                live = False
            merges = known.merges_flags and keep[i]
            if known.reads_flags or merges or known.may_leave:
                live = True
        requests: list[Request | None] = []
        rule = UNKNOWN
        for (_, known, shape), kept in zip(run, keep, strict=True):
            reads = known.reads_flags or known.merges_flags and kept
            requests.append(Request(shape, kept, rule if reads else UNKNOWN))
            if known.writes_flags:
                rule = known.result if kept and known.result is not None else UNKNOWN
        if len(run) > 1:
            self._fuse(run, requests)
        return requests

    def _fuse(self, run: list[Translated], requests: list[Request | None]) -> None:
        """Compare-and-branch as one handler, where the branch closes the block."""
        (first, known, _), (second, branch, shape) = run[-2], run[-1]
        if not (branch.is_branch and branch.reads_flags and not branch.has_memory):
            return
        conditional = second.operands and second.operands[0].kind == "branch"
        if not (conditional and known.is_native and known.kills_flags and not first.form.lock):
            return
        if known.is_branch or known.result in (None, -1):
            return
        ahead = requests[-2]
        assert ahead is not None
        requests[-2] = Request(ahead.shape, True, ahead.incoming, shape)
        requests[-1] = None

    def _write(
        self,
        run: list[Translated],
        rip: int,
        hosts: tuple[int, ...],
        mode: tuple[int, int],
        native: Native,
    ) -> Block:
        draft = Draft(self.compiler.runtime)
        if not self._draft(draft, run, plainly=not native):
            draft.go_on(run[-1][0].next_rip) if run else draft.interpret(rip, None)
        key, page = mode_key(mode, native), rip >> 12

        def near(target: int) -> int | None:
            if target >> 12 != page or len(hosts) > 1:
                return None
            there = self.blocks.get((hosts[0] + (target & 0xFFF), target, key))
            return 0 if there is None else there.record

        at = self.arena.take(len(draft.words))
        address = self.arena.address + 8 * at
        draft.settle(address, near)
        self.arena.place(draft.words)
        if draft.interpreted is not None:
            self.interpreted[address + 8 * draft.interpreted[0]] = draft.interpreted[1]
        self.translated += len(run)
        size = sum(instruction.length for instruction, _, _ in run)
        return Block(address, rip, hosts, len(run), size)

    def _draft(self, draft: Draft, run: list[Translated], plainly: bool) -> bool:
        """Write the records of a run; True if the last one ends the block by itself."""
        native = [one for one in run if one[1].is_native]
        requests = self._requests(native) if native else []
        book = self.book
        missing = [r for r in requests if r is not None and book.get(r) is False]
        if missing:
            book.require(missing)
        for i, (instruction, known, _) in enumerate(run):
            request = requests[i] if i < len(requests) else None
            if i < len(requests) and request is None:
                continue  # fused into the one before
            handler = book.get(request) if request is not None else None
            if not isinstance(handler, Handler):
                draft.microcode(instruction, plainly)
                return True
            then = run[i + 1][0] if request is not None and request.then else None
            draft.record(handler, instruction, then)
            if known.is_branch or then is not None:
                return True
        return False

    def keep(self, key: tuple[int, ...], block: Block) -> None:
        """Make a block findable."""
        with self.lock:
            self.blocks[key] = block
            for host in block.hosts:
                self.by_page.setdefault(host, []).append((key, block))
