"""Which locked accesses lock the bus (reference A.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from trapline.processor.buslock import Cause, classify


@pytest.mark.parametrize(
    ("size", "offsets"), [(1, []), (2, [63]), (4, [61, 62, 63]), (8, list(range(57, 64)))]
)
def test_an_operand_splits_at_these_offsets_of_a_line(size: int, offsets: list[int]) -> None:
    line = 0x7FFF_1234_5640
    split = [offset for offset in range(64) if classify(line + offset, size, True)]
    assert split == offsets


@given(linear=some.integers(0, 2**64 - 16), size=some.sampled_from([1, 2, 4, 8, 16]))
def test_the_lines_of_the_first_and_last_byte_decide(linear: int, size: int) -> None:
    splits = linear // 64 != (linear + size - 1) // 64
    assert classify(linear, size, True) == (Cause.SPLIT if splits else None)
    assert classify(linear, size, False) is Cause.UNCACHED
