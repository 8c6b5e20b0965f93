"""Operation records: drafted as a list of words, then placed in memory that is never freed.

What blocks there are, and which handlers they want, is not known here.
"""

from __future__ import annotations

import ctypes
import mmap
from array import array
from collections.abc import Callable

from trapline.processor.decode import Decoded
from trapline.processor.jit import layout
from trapline.processor.jit.compiler import Handler
from trapline.processor.jit.fields import GETTERS
from trapline.processor.jit.runtime import system_handler

_ARENA = 1 << 22


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

    def place(self, words: list[int]) -> None:
        """Copy words to where the last `take` made room for them."""
        start = self.next - len(words)
        self.words[start : self.next] = memoryview(array("Q", words).tobytes()).cast("Q")


class Draft:
    """The records of one block while they are being written."""

    def __init__(self, runtime: dict[str, int]) -> None:
        self.words: list[int] = []
        self.interpreted: tuple[int, Decoded] | None = None  # word index of its record
        self._links: list[tuple[int, int]] = []  # word index of the pointer, target RIP
        self._runtime = runtime

    def interpret(self, rip: int, instruction: Decoded | None) -> None:
        """The instruction at `rip` is the reference engine's; the block ends."""
        if instruction is not None and instruction.name:
            self.interpreted = (len(self.words), instruction)
        self.words += (self._runtime["trapline_interpret"], rip)

    def microcode(self, instruction: Decoded, plainly: bool) -> None:
        """An instruction without a handler of its own; the block ends.  Unless all is the
        reference engine's (`plainly`), native code may have a way for the usual case."""
        found = None if plainly else system_handler(instruction)
        rip = instruction.rip
        if found is None:
            self.interpret(rip, instruction)
            return
        name, first, second = found
        self.interpreted = (len(self.words), instruction)
        self.words += (self._runtime[name], rip, instruction.next_rip, first, second)
        self._append_link(instruction.next_rip)

    def go_on(self, rip: int) -> None:
        """The block ends, but the code goes on at `rip`."""
        self.words += (self._runtime["trapline_goto"], rip)
        self._append_link(rip)

    def _append_link(self, rip: int) -> None:
        at = len(self.words)
        self.words += [0] * layout.LINK_WORDS
        self._link(at, rip)

    def record(self, handler: Handler, instruction: Decoded, then: Decoded | None) -> None:
        """One record (two for a fused pair, in one)."""
        out = self.words
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
                self._link(at, now.next_rip if name == "fall" else _target(now))

    def _link(self, at: int, rip: int) -> None:
        self.words[at + 2] = rip
        self._links.append((at, rip))

    def settle(self, address: int, near: Callable[[int], int | None]) -> None:
        """Now that the records' address is known: the links.  `near` gives the record a target
        within the page has (0: none yet), or None for a target beyond, which is looked up each
        time since the mapping may change."""
        stub_link = self._runtime["trapline_stub_link"]
        stub_lookup = self._runtime["trapline_stub_lookup"]
        for word, target in self._links:
            pointer, there = address + 8 * word, near(target)
            self.words[word] = there or pointer + 8
            self.words[word + 1] = stub_lookup if there is None else stub_link
            self.words[word + 3] = pointer


def _target(instruction: Decoded) -> int:
    """Where a direct branch goes."""
    return next(b.immediate for b in instruction.operands if b.kind == "branch")
