"""The shape of an instruction: everything that decides which handler it gets.

Registers, displacements and immediates are not in it; they are fields of the record.  Only a
vector instruction's immediate is, for it says which lanes, which predicate, which rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from trapline.processor.decode import Decoded
from trapline.processor.language import FormFacts
from trapline.processor.state import OFFSET

_ZERO = OFFSET["zero"]


@dataclass(frozen=True)
class Shape:
    """Per operand: `high_bytes` (AH..BH), `addresses` (which of b = base and x = index are
    there), `address_widths`, `segments` (64-bit code: "fs", "gs" or "" for the flat ones)."""

    form: FormFacts
    high_bytes: tuple[bool, ...]
    addresses: tuple[str, ...]
    address_widths: tuple[int, ...]
    segments: tuple[str, ...]
    backward: bool

    # Not cached properties: up to Python 3.11 those have a lock, which a fork may find taken.
    kinds: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        facts = (self.high_bytes, self.addresses, self.address_widths, self.segments)
        object.__setattr__(self, "_hash", hash((self.form, facts, self.backward)))
        kinds = tuple([operand.kind for operand in self.form.operands])
        object.__setattr__(self, "kinds", kinds)

    def __hash__(self) -> int:
        # Every translated instruction is looked up by its shape; hashing all of it costs more
        # than the rest of the look-up.
        return self._hash

    @property
    def bitness(self) -> int:
        return self.form.bitness

    @property
    def symbol(self) -> str:
        """A name that tells two shapes apart, fit for an object file's symbol table."""
        return _symbol(self)


@cache
def _symbol(shape: Shape) -> str:
    form = shape.form
    parts = [form.name]
    for i, operand in enumerate(form.operands):
        word = f"{operand.kind[0] if operand.kind != 'imm' else 'n'}{operand.width}"
        if operand.kind in ("sreg", "st", "mmx", "branch"):
            word = f"{operand.kind}{operand.width}"
        if operand.kind == "mem":
            word += shape.addresses[i] + shape.segments[i]
            if shape.address_widths[i] != form.bitness:
                word += f"a{shape.address_widths[i]}"
        if shape.high_bytes[i]:
            word += "h"
        parts.append(word)
    facts = f"o{form.operand_width}a{form.address_width}s{form.stack_width}c{form.bitness}"
    parts.append(facts)
    if form.lock:
        parts.append("lock")
    if form.repeat:
        parts.append(form.repeat)
    if form.aliased:
        parts.append("same")
    if form.immediate is not None:
        parts.append(f"i{form.immediate:x}")
    if form.shifts:
        parts.append("shifts")
    if shape.backward:
        parts.append("back")
    return "_".join(parts)


def shape_of(instruction: Decoded) -> Shape:
    """The shape of a decoded instruction."""
    high, addresses, widths, segments = [], [], [], []
    form = instruction.form
    backward = False
    for bound in instruction.operands:
        high.append(bound.kind == "reg" and bool(bound.offset & 7))
        if bound.kind == "mem":
            has_base = "b" if bound.base != _ZERO else ""
            addresses.append(has_base + ("x" if bound.index != _ZERO else ""))
            widths.append(bound.address_width)
            flat = form.bitness == 64 and bound.segment not in ("fs", "gs")
            segments.append("" if flat else bound.segment)
            continue
        if bound.kind == "branch":
            backward = bound.immediate <= instruction.rip
        addresses.append("")
        widths.append(0)
        segments.append("")
    return Shape(form, tuple(high), tuple(addresses), tuple(widths), tuple(segments), backward)
