"""Blocks: straight runs of guest code as records, found by host address, linear address and mode.

Shared by all processors of a machine.  A block lies within one page, or is the single
instruction that crosses a page's end.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from dataclasses import dataclass
from itertools import pairwise

from trapline.processor.decode import Decoded, decode_run
from trapline.processor.jit import layout
from trapline.processor.jit.compiler import Handler, compiler
from trapline.processor.jit.facts import Facts, facts_of
from trapline.processor.jit.fields import GETTERS
from trapline.processor.jit.flags import UNKNOWN
from trapline.processor.jit.handlers import HandlerBook, Request
from trapline.processor.jit.shape import Shape, shape_of

MAX_INSTRUCTIONS = 64
_MOST_KNOWN = 200_000
_ARENA = 1 << 22


@dataclass(slots=True)
class Block:
    """`record` is its first record's address; `hosts` the host pages its bytes lie in; `size`
    in bytes of guest code."""

    record: int
    rip: int
    hosts: tuple[int, ...]
    instructions: int
    size: int


def mode_key(mode: tuple[int, int], is_native: bool) -> int:
    """The part of a block's key that says which kind of code it is."""
    return mode[0] + mode[1] + (1024 if is_native else 0)


Translated = tuple[Decoded, Facts, Shape]


class Arena:
    """Memory for records.  Never freed: a processor may still be inside a dropped block."""

    def __init__(self) -> None:
        self._chunks: list[mmap.mmap] = []
        self.used = 0
        self._grow(_ARENA)

    def _grow(self, size: int) -> None:
        chunk = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._chunks.append(chunk)
        self.words = memoryview(chunk).cast("Q")
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(chunk))
        self.next, self._end = 0, size >> 3

    def take(self, words: int) -> int:
        """Room for that many words; gives the index in `words`, which may be another chunk."""
        if self.next + words > self._end:
            self._grow(max(_ARENA, 8 * words + 4095 & ~4095))
        at = self.next
        self.next += words
        self.used += words
        return at


class CodeCache:
    """All blocks of one machine, and the translator that makes them."""

    def __init__(self) -> None:
        self.compiler = compiler()
        self.book = HandlerBook(self.compiler)
        self.arena = Arena()
        self.lock = threading.RLock()
        self.blocks: dict[tuple[int, ...], Block] = {}
        self.by_page: dict[int, list[tuple[tuple[int, ...], Block]]] = {}
        self._known: dict[tuple[bytes, int], tuple[Facts, Shape]] = {}
        self._shapes: dict[Shape, Shape] = {}
        # What the reference engine is handed, by the record it was found through.
        self.interpreted: dict[int, Decoded] = {}
        self.translated = 0
        runtime = self.compiler.runtime
        self._stub_link = runtime["trapline_stub_link"]
        self._stub_lookup = runtime["trapline_stub_lookup"]
        self._interpret = runtime["trapline_interpret"]
        self._goto = runtime["trapline_goto"]

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
        interpret: bool,
        limit: int = MAX_INSTRUCTIONS,
    ) -> Block:
        """A block from the bytes at `rip` (which reach the page's end at most, or are one
        instruction that crosses it).  `interpret`: every instruction is the reference
        engine's in this mode."""
        bitness, stack_width = mode
        crossing = len(hosts) > 1
        run: list[Translated] = []
        for instruction in decode_run(code, rip, bitness, stack_width):
            known, shape = self._look_up(instruction, bitness + stack_width)
            run.append((instruction, known, shape))
            if interpret or known.is_branch or not known.is_native:
                break
            if crossing or len(run) >= limit:
                break
        with self.lock:
            return self._write(run, rip, hosts, mode, interpret)

    def _look_up(self, instruction: Decoded, mode: int) -> tuple[Facts, Shape]:
        """An instruction's facts and shape follow from its bytes."""
        key = (instruction.code, mode)
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
        interpret: bool,
    ) -> Block:
        native = [] if interpret else [one for one in run if one[1].is_native]
        requests = self._requests(native) if native else []
        book = self.book
        missing = [r for r in requests if r is not None and book.get(r) is False]
        if missing:
            book.require(missing)
        out: list[int] = []
        links: list[tuple[int, int]] = []  # word index of the pointer, target rip
        ended = False
        interpreted: tuple[int, Decoded] | None = None
        for i, (instruction, known, _) in enumerate(run):
            request = requests[i] if i < len(requests) else None
            if i < len(requests) and request is None:
                continue  # fused into the one before
            handler = book.get(request) if request is not None else None
            if not isinstance(handler, Handler):
                interpreted = (len(out), instruction)
                out += (self._interpret, instruction.rip)
                ended = True
                break
            then = run[i + 1][0] if request is not None and request.then else None
            self._record(out, links, handler, instruction, then)
            ended = known.is_branch or then is not None
            if ended:
                break
        if not run:
            out += (self._interpret, rip)
        elif not ended:
            last = run[-1][0]
            out += (self._goto, last.next_rip)
            self._link(out, links, last.next_rip)
        size = sum(instruction.length for instruction, _, _ in run)
        block = self._place(out, links, rip, hosts, (len(run), size), mode_key(mode, not interpret))
        if interpreted is not None and interpreted[1].name:
            self.interpreted[block.record + 8 * interpreted[0]] = interpreted[1]
        return block

    def _record(
        self,
        out: list[int],
        links: list[tuple[int, int]],
        handler: Handler,
        instruction: Decoded,
        then: Decoded | None,
    ) -> None:
        """Append one record (two for a fused pair, in one)."""
        start = len(out)
        out += [0] * handler.words
        out[start], out[start + 1] = handler.address, instruction.rip
        base, now = start, instruction
        for name, operand, word, shift in handler.plan:
            at = base + word
            if operand >= 0:
                out[at] |= GETTERS[name](now.operands[operand]) << shift
            elif name == "next_rip":
                out[at] = now.next_rip
            elif name == "float_opcode":
                out[at] |= now.float_opcode << shift
            elif name == "then":
                assert then is not None
                base, now = at, then
                out[base + 1] = now.rip
            else:
                target = now.operands[0].immediate if name == "taken" else now.next_rip
                for bound in now.operands:
                    if bound.kind == "branch" and name == "taken":
                        target = bound.immediate
                self._fill_link(out, at, links, target)

    def _link(self, out: list[int], links: list[tuple[int, int]], target: int) -> None:
        at = len(out)
        out += [0] * layout.LINK_WORDS
        self._fill_link(out, at, links, target)

    def _fill_link(self, out: list[int], at: int, links: list[tuple[int, int]], rip: int) -> None:
        out[at + 2] = rip
        links.append((at, rip))

    def _place(
        self,
        out: list[int],
        links: list[tuple[int, int]],
        rip: int,
        hosts: tuple[int, ...],
        lengths: tuple[int, int],
        mode: int,
    ) -> Block:
        instructions, size = lengths
        arena = self.arena
        at = arena.take(len(out))
        address = arena.address + 8 * at
        page, crossing = rip >> 12, len(hosts) > 1
        for word, target in links:
            pointer = address + 8 * word
            out[word] = pointer + 8
            # Within the page a link may be patched for good; beyond it the mapping may change.
            near = target >> 12 == page and not crossing
            if near:
                there = self.blocks.get((hosts[0] + (target & 0xFFF), target, mode))
                if there is not None:
                    out[word] = there.record
            out[word + 1] = self._stub_link if near else self._stub_lookup
            out[word + 3] = pointer
        arena.words[at : at + len(out)] = memoryview(_as_bytes(out)).cast("Q")
        self.translated += instructions
        return Block(address, rip, hosts, instructions, size)

    def keep(self, key: tuple[int, ...], block: Block) -> None:
        """Make a block findable."""
        with self.lock:
            self.blocks[key] = block
            for host in block.hosts:
                self.by_page.setdefault(host, []).append((key, block))


def _as_bytes(words: list[int]) -> bytes:
    from array import array

    return array("Q", words).tobytes()


__all__ = ["Block", "CodeCache", "pairwise"]
