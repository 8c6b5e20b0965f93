"""The fields of an operation record: what a handler reads from it and how they are packed.

Half-word fields (byte offsets of registers, shifts) share 64-bit words; the handler loads them
with a constant offset.  The same list, kept beside the compiled handler, tells the translator
how to fill a record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from trapline.processor.decode import Bound
from trapline.processor.jit import layout

HALF, WORD, LINK = "half", "word", "link"


@dataclass(slots=True)
class Fields:
    """Allocates the fields of one record.  `plan` lists (name, operand, word, shift)."""

    plan: list[tuple[str, int, int, int]] = field(default_factory=list)
    words: int = layout.RECORD_HEAD
    _half_word: int = 0
    _half_shift: int = 64

    def half(self, name: str, operand: int) -> int:
        """A 16-bit field; gives its byte offset in the record."""
        if self._half_shift >= 64:
            self._half_word, self._half_shift = self.words, 0
            self.words += 1
        word, shift = self._half_word, self._half_shift
        self._half_shift += 16
        self.plan.append((name, operand, word, shift))
        return 8 * word + shift // 8

    def word(self, name: str, operand: int) -> int:
        """A 64-bit field; gives its byte offset in the record."""
        word = self.words
        self.words += 1
        self.plan.append((name, operand, word, 0))
        return 8 * word

    def link(self, name: str) -> int:
        """A link to another record, with its stub; gives its byte offset."""
        word = self.words
        self.words += layout.LINK_WORDS
        self.plan.append((name, -1, word, 0))
        return 8 * word


GETTERS: dict[str, Callable[[Bound], int]] = {
    "offset": lambda bound: bound.offset,
    "number": lambda bound: bound.number,
    "base": lambda bound: bound.base,
    "index": lambda bound: bound.index,
    "scale": lambda bound: bound.scale,
    "displacement": lambda bound: bound.displacement,
    "immediate": lambda bound: bound.immediate,
}
