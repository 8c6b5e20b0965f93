"""Draws how an operand's bytes fall on cache lines, one character a byte."""

from __future__ import annotations

from typing import NamedTuple

CACHE_LINE = 64
SHOWN = 24  # bytes of each line beside the boundary: both fit in 80 columns


class Strokes(NamedTuple):
    """The characters to draw with."""

    byte: str
    operand: str
    border: str
    more: str


UNICODE = Strokes("·", "█", "│", "┄")
ASCII = Strokes(".", "#", "|", "~")


def draw(linear: int, size: int, strokes: Strokes) -> list[str]:
    """The lines of a drawing: where the cache lines begin, and the bytes the operand covers."""
    inside = linear % CACHE_LINE
    line = linear - inside
    if inside + size <= CACHE_LINE:
        cells = _cells(0, CACHE_LINE, inside, inside + size, strokes)
        return [f" {line:#x}", f"{strokes.border}{cells}{strokes.border}"]
    first = _cells(CACHE_LINE - SHOWN, CACHE_LINE, inside, inside + size, strokes)
    second = _cells(CACHE_LINE, CACHE_LINE + SHOWN, inside, inside + size, strokes)
    heading = f"  {f'line {line:#x}':<{SHOWN + 1}}line {line + CACHE_LINE:#x}"
    return [heading, f"{strokes.more}{first}{strokes.border}{second}{strokes.more}"]


def _cells(start: int, end: int, first: int, last: int, strokes: Strokes) -> str:
    return "".join(
        strokes.operand if first <= at < last else strokes.byte for at in range(start, end)
    )
