"""Integer vector operations that look beyond one lane: packing, sums, byte selection, strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trapline.processor.interp.primitives import primitive
from trapline.processor.interp.vector import clamp_signed, clamp_unsigned, join, signed, split

if TYPE_CHECKING:
    from trapline.processor.language import Primitive
    from trapline.processor.state import State


def _pack(clamp: Callable[[int, int], int], lane: int, lanes: list[int]) -> int:
    half = lane // 2
    return join([clamp(signed(a, lane), half) for a in lanes], half)


def _pairs(combine: Callable[[int, int], int], lane: int, lanes: list[int]) -> int:
    """Neighbours combined; `lanes` are those of the destination, then those of the source."""
    numbers = [signed(a, lane) for a in lanes]
    return join([combine(a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=True)], lane)


_ACROSS: dict[str, Callable[[int, list[int]], int]] = {
    "packs": lambda lane, lanes: _pack(clamp_signed, lane, lanes),
    "packus": lambda lane, lanes: _pack(clamp_unsigned, lane, lanes),
    "hadd": lambda lane, lanes: _pairs(lambda a, b: a + b, lane, lanes),
    "hsub": lambda lane, lanes: _pairs(lambda a, b: a - b, lane, lanes),
    "hadds": lambda lane, lanes: _pairs(lambda a, b: clamp_signed(a + b, lane), lane, lanes),
    "hsubs": lambda lane, lanes: _pairs(lambda a, b: clamp_signed(a - b, lane), lane, lanes),
}


@primitive("across")
def _across(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(operation, lane): the lanes of both vectors in a row, packed or combined by pairs."""
    operation, lane = effect.attributes
    lanes = [a for word in words for a in split(word, lane, effect.args[0].width)]
    return (_ACROSS[operation](lane, lanes),)


@primitive("multiply_add")
def _multiply_add(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(lane,): products of signed 16-bit lanes (8: unsigned by signed bytes, saturated),
    neighbours added."""
    (lane,) = effect.attributes
    left, right = (split(word, lane, effect.args[0].width) for word in words)
    products = [
        (a if lane == 8 else signed(a, lane)) * signed(b, lane)
        for a, b in zip(left, right, strict=True)
    ]
    sums = [a + b for a, b in zip(products[::2], products[1::2], strict=True)]
    if lane == 8:
        sums = [clamp_signed(number, 16) for number in sums]
    return (join(sums, 2 * lane),)


@primitive("sum_differences")
def _sum_differences(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """PSADBW: for each eight bytes the sum of absolute differences."""
    left, right = (split(word, 8, effect.args[0].width) for word in words)
    distances = [abs(a - b) for a, b in zip(left, right, strict=True)]
    return (join([sum(distances[i : i + 8]) for i in range(0, len(distances), 8)], 64),)


@primitive("sum_differences_at")
def _sum_differences_at(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """MPSADBW, of=(immediate,): four bytes against eight places in the destination."""
    (immediate,) = effect.attributes
    left, right = split(words[0], 8, 128), split(words[1], 8, 128)
    start, fixed = 4 * (immediate >> 2 & 1), 4 * (immediate & 3)
    sums = [
        sum(abs(left[start + place + i] - right[fixed + i]) for i in range(4)) for place in range(8)
    ]
    return (join(sums, 16),)


@primitive("minimum_position")
def _minimum_position(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """PHMINPOSUW: the smallest 16-bit lane and where it first is."""
    lanes = split(words[0], 16, 128)
    smallest = min(lanes)
    return (smallest | lanes.index(smallest) << 16,)


@primitive("select_bytes")
def _select_bytes(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """PSHUFB: bytes of the first vector by the numbers in the second; bit 7 gives zero."""
    width = effect.args[0].width
    table, controls = split(words[0], 8, width), split(words[1], 8, width)
    mask = len(table) - 1
    return (join([0 if c & 0x80 else table[c & mask] for c in controls], 8),)


def _aggregate(mode: int, lane: int, left: list[int], right: list[int], lengths: list[int]) -> int:
    """IntRes1 (SDM 2, "Aggregation Operation"): a bit for each element of the second operand."""
    count = len(right)
    if mode == 0:  # equal any: is the element one of the set?
        hits = [any(right[j] == a for a in left[: lengths[0]]) for j in range(count)]
        return join([hit and j < lengths[1] for j, hit in enumerate(hits)], 1)
    if mode == 1:  # ranges: is the element between one of the pairs?
        pairs = list(zip(left[: lengths[0]][::2], left[: lengths[0]][1::2], strict=False))
        hits = [any(low <= right[j] <= high for low, high in pairs) for j in range(count)]
        return join([hit and j < lengths[1] for j, hit in enumerate(hits)], 1)
    if mode == 2:  # equal each: do the elements agree, or end both?
        bits = []
        for j in range(count):
            ended = (j >= lengths[0], j >= lengths[1])
            bits.append(all(ended) if any(ended) else left[j] == right[j])
        return join(bits, 1)
    return join([_begins(j, left, right, lengths) for j in range(count)], 1)


def _begins(place: int, left: list[int], right: list[int], lengths: list[int]) -> bool:
    """Equal ordered: does the first string begin (as far as the register goes) at `place`?"""
    for i in range(min(lengths[0], len(right) - place)):
        if place + i >= lengths[1] or left[i] != right[place + i]:
            return False
    return True


def _length(lanes: list[int]) -> int:
    return lanes.index(0) if 0 in lanes else len(lanes)


@primitive("string_compare")
def _string_compare(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """PCMPxSTRx, of=(immediate, wants_index): two strings, and their lengths where explicit.

    Gives the index or mask, then CF, ZF, SF, OF."""
    immediate, wants_index = effect.attributes
    lane = 16 if immediate & 1 else 8
    left, right = split(words[0], lane, 128), split(words[1], lane, 128)
    lengths = list(words[2:]) or [_length(left), _length(right)]
    count = len(right)
    flags = (lengths[1] < count, lengths[0] < count)
    if immediate & 2:
        left, right = ([signed(a, lane) for a in lanes] for lanes in (left, right))
    bits = _aggregate(immediate >> 2 & 3, lane, left, right, lengths)
    if immediate & 0x10:
        inverted = lengths[1] if immediate & 0x20 else count
        bits ^= (1 << inverted) - 1
    if not wants_index:
        lanes = split(bits, 1, count)
        result = join([-a for a in lanes], lane) if immediate & 0x40 else bits
    elif immediate & 0x40:
        result = bits.bit_length() - 1 if bits else count
    else:
        result = (bits & -bits).bit_length() - 1 if bits else count
    return (result, int(bits != 0), *(int(flag) for flag in flags), bits & 1)
