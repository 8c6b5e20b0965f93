"""What an instruction's operands are to microcode: registers and memory, read and written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.processor import segment
from trapline.processor.state import INDEX

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.decode import Bound, Decoded
    from trapline.processor.state import State

_RSP = INDEX["rsp"]


def offset_of(state: State, bound: Bound) -> int:
    """The offset within its segment that a memory operand names."""
    q = state.q
    word = q[bound.base >> 3] + (q[bound.index >> 3] << bound.scale) + bound.displacement
    return word & (1 << bound.address_width) - 1


def linear_of(core: Core, bound: Bound, size: int, is_write: bool = False, at: int = 0) -> int:
    """The linear address of a memory operand, `at` bytes on, after the segment's checks."""
    offset = offset_of(core.state, bound) + at & (1 << bound.address_width) - 1
    return segment.linearize(core, bound.segment, offset, size, is_write)


def read(core: Core, bound: Bound, size: int) -> int:
    """`size` bytes of a register or memory operand."""
    if bound.kind == "mem":
        return core.memory.read(linear_of(core, bound, size), size)
    raw = core.state.bytes[bound.offset : bound.offset + size]
    return int.from_bytes(raw, "little")


def write(core: Core, bound: Bound, size: int, word: int) -> None:
    """Write a register or memory operand; 32 bits into a register clear its upper half."""
    word &= (1 << 8 * size) - 1
    if bound.kind == "mem":
        core.memory.write(linear_of(core, bound, size, True), size, word)
        return
    if size == 4:
        size = 8
    core.state.bytes[bound.offset : bound.offset + size] = word.to_bytes(size, "little")


class Stack:
    """The stack as an instruction pops it and pushes on it; RSP changes at `commit`."""

    __slots__ = ("_core", "_mask", "pointer")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._mask = (1 << segment.code_mode(core.state)[1]) - 1
        self.pointer = core.state.q[_RSP] & self._mask

    def pop(self, size: int) -> int:
        core = self._core
        word = core.memory.read(segment.linearize(core, "ss", self.pointer, size, False), size)
        self.pointer = self.pointer + size & self._mask
        return word

    def push(self, size: int, *words: int) -> None:
        """Push the words in order; none of them unless all can be."""
        core, pointer, places = self._core, self.pointer, []
        for word in words:
            pointer = pointer - size & self._mask
            linear = segment.linearize(core, "ss", pointer, size, True)
            core.memory.probe_write(linear, size)
            places.append((linear, word & (1 << 8 * size) - 1))
        for linear, word in places:
            core.memory.write(linear, size, word)
        self.pointer = pointer

    def release(self, count: int) -> None:
        self.pointer = self.pointer + count & self._mask

    def commit(self) -> None:
        q = self._core.state.q
        q[_RSP] = q[_RSP] & ~self._mask | self.pointer


def size_of(instruction: Decoded) -> int:
    """The operand size in bytes."""
    return instruction.form.operand_width >> 3
