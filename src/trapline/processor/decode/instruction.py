"""One decoded instruction: its name, its form, and what its operands are bound to.

Nothing here knows iced-x86, or what the instruction does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from trapline.processor.language import FormFacts


@dataclass(frozen=True, slots=True)
class Bound:
    """What one operand is in one instruction.

    `offset`: byte offset of the register in State (reg: AH..BH point one byte up; xmm).
    `number`: register number; `immediate`: imm, branch target (linear RIP) or far offset,
    `selector` of a far pointer.  Memory: `base` and `index` are byte offsets of slots (the zero
    slot when absent), the offset is (base + (index << scale) + displacement) wrapped to
    `address_width`, within `segment`.
    """

    kind: str
    width: int
    offset: int = 0
    number: int = 0
    immediate: int = 0
    selector: int = 0
    base: int = 0
    index: int = 0
    scale: int = 0
    displacement: int = 0
    segment: str = "ds"
    address_width: int = 64


TOO_LONG = FormFacts("", ())
"""The form of what does not end within 15 bytes; told from others by identity."""


@dataclass(slots=True)
class Decoded:
    """An instruction at `rip`.  `code` is its bytes; `name` "" means it does not decode."""

    name: str
    rip: int
    length: int
    code: bytes
    form: FormFacts
    operands: tuple[Bound, ...]

    @property
    def is_too_long(self) -> bool:
        """Whether it goes on beyond 15 bytes, of which `code` has the first."""
        return self.form is TOO_LONG

    @property
    def float_opcode(self) -> int:
        """What x87 keeps as FOP (SDM 1, "Last Instruction Opcode"): the second byte, and the
        low bits of the first, which no prefix looks like."""
        for first, second in pairwise(self.code):
            if first & 0xF8 == 0xD8:
                return (first & 7) << 8 | second
        return 0

    @property
    def next_rip(self) -> int:
        mask = 0xFFFFFFFFFFFFFFFF if self.form.bitness == 64 else 0xFFFFFFFF
        return self.rip + self.length & mask
