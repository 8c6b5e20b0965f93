"""Integer vectors on Python integers: a vector is one number, its lanes are split off and joined.

Signs, saturation and lane order are all there is to know here; see jit.vector for the twin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trapline.processor.interp.primitives import primitive

if TYPE_CHECKING:
    from trapline.processor.language import Primitive
    from trapline.processor.state import State


def split(word: int, lane: int, width: int) -> list[int]:
    """The lanes of a vector of `width` bits, lowest first."""
    mask = (1 << lane) - 1
    return [word >> position & mask for position in range(0, width, lane)]


def join(lanes: Sequence[int], lane: int) -> int:
    """Lanes, lowest first, as one number; each is cut to its width."""
    mask = (1 << lane) - 1
    word = 0
    for number in reversed(lanes):
        word = word << lane | number & mask
    return word


def signed(number: int, width: int) -> int:
    """The two's complement reading of a bit pattern."""
    return number - (1 << width) if number >> width - 1 else number


def clamp_signed(number: int, width: int) -> int:
    """The nearest number that fits `width` bits with a sign."""
    top = 1 << width - 1
    return max(-top, min(number, top - 1))


def clamp_unsigned(number: int, width: int) -> int:
    """The nearest number that fits `width` bits without a sign."""
    return max(0, min(number, (1 << width) - 1))


def _both(operation: Callable[[int, int], int]) -> Callable[[int, int, int], int]:
    """An operation on two signed lanes."""
    return lambda a, b, lane: operation(signed(a, lane), signed(b, lane))


def _sign(a: int, b: int, lane: int) -> int:
    direction = signed(b, lane)
    return 0 if direction == 0 else -a if direction < 0 else a


def _shift(move: Callable[[int, int, int], int]) -> Callable[[int, int, int], int]:
    """A shift whose count, too large, shifts everything out (or leaves the sign)."""
    return lambda a, count, lane: move(a, min(count, lane), lane)


_BY_LANE: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, lane: a + b,
    "sub": lambda a, b, lane: a - b,
    "adds": lambda a, b, lane: clamp_signed(signed(a, lane) + signed(b, lane), lane),
    "addus": lambda a, b, lane: clamp_unsigned(a + b, lane),
    "subs": lambda a, b, lane: clamp_signed(signed(a, lane) - signed(b, lane), lane),
    "subus": lambda a, b, lane: clamp_unsigned(a - b, lane),
    "mul": lambda a, b, lane: a * b,
    "mulhu": lambda a, b, lane: a * b >> lane,
    "mulhs": lambda a, b, lane: signed(a, lane) * signed(b, lane) >> lane,
    "mulhrs": lambda a, b, lane: (signed(a, lane) * signed(b, lane) >> lane - 2) + 1 >> 1,
    "evenu": lambda a, b, lane: _low_half(a, lane) * _low_half(b, lane),
    "evens": lambda a, b, lane: _signed_half(a, lane) * _signed_half(b, lane),
    "minu": lambda a, b, lane: min(a, b),
    "maxu": lambda a, b, lane: max(a, b),
    "mins": _both(min),
    "maxs": _both(max),
    "avg": lambda a, b, lane: a + b + 1 >> 1,
    "eq": lambda a, b, lane: -(a == b),
    "gt": lambda a, b, lane: -(signed(a, lane) > signed(b, lane)),
    "sign": _sign,
}
_SHIFTS = {
    "shl": _shift(lambda a, count, lane: a << count),
    "lshr": _shift(lambda a, count, lane: a >> count),
    "ashr": _shift(lambda a, count, lane: signed(a, lane) >> count),
}


def _low_half(number: int, lane: int) -> int:
    return number & (1 << lane // 2) - 1


def _signed_half(number: int, lane: int) -> int:
    return signed(_low_half(number, lane), lane // 2)


@primitive("lanes")
def _lanes(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(operation, lane): two vectors, lane by lane."""
    operation, lane = effect.attributes
    width, combine = effect.args[0].width, _BY_LANE[operation]
    left, right = (split(word, lane, width) for word in words)
    return (join([combine(a, b, lane) for a, b in zip(left, right, strict=True)], lane),)


@primitive("lanes_abs")
def _lanes_abs(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(lane,): magnitudes."""
    (lane,) = effect.attributes
    lanes = split(words[0], lane, effect.args[0].width)
    return (join([abs(signed(a, lane)) for a in lanes], lane),)


@primitive("lanes_shift")
def _lanes_shift(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(operation, lane): every lane by the same 64-bit count."""
    operation, lane = effect.attributes
    move = _SHIFTS[operation]
    lanes = split(words[0], lane, effect.args[0].width)
    return (join([move(a, words[1], lane) for a in lanes], lane),)


@primitive("lanes_choose")
def _lanes_choose(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(lane,): (first, second, mask): the second where the mask's lane has its top bit."""
    (lane,) = effect.attributes
    parts = [split(word, lane, effect.args[0].width) for word in words]
    return (join([b if c >> lane - 1 else a for a, b, c in zip(*parts, strict=True)], lane),)


@primitive("lanes_signs")
def _lanes_signs(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(lane,): the top bit of each lane, side by side."""
    (lane,) = effect.attributes
    return (join([a >> lane - 1 for a in split(words[0], lane, effect.args[0].width)], 1),)


@primitive("lanes_widen")
def _lanes_widen(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(lane, to, is_signed): each lane extended to `to` bits."""
    lane, to, is_signed = effect.attributes
    lanes = split(words[0], lane, effect.args[0].width)
    return (join([signed(a, lane) if is_signed else a for a in lanes], to),)


@primitive("lanes_insert")
def _lanes_insert(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(lane, index): (vector, number): the vector with one lane replaced."""
    lane, index = effect.attributes
    lanes = split(words[0], lane, effect.args[0].width)
    lanes[index] = words[1]
    return (join(lanes, lane),)


@primitive("shuffle")
def _shuffle(state: State, effect: Primitive, words: Sequence[int]) -> Sequence[int]:
    """of=(lane, indices): lanes of the first vector, then those of the second, by number."""
    lane, indices = effect.attributes
    lanes: list[int] = []
    for word, argument in zip(words, effect.args, strict=True):
        lanes += split(word, lane, argument.width)
    return (join([lanes[index] for index in indices], lane),)
