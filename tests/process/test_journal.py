"""What the child of a vfork notes and sends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trapline.process.journal import _differences

pages = st.binary(min_size=64, max_size=64)


@given(pages, pages)
def test_the_ranges_hold_every_byte_that_differs(before: bytes, after: bytes) -> None:
    changed = bytearray(before)
    for start, end in _differences(before, after):
        changed[start:end] = after[start:end]
    assert bytes(changed) == after


@given(pages, st.sets(st.integers(0, 63), max_size=6))
def test_ranges_begin_and_end_with_a_difference(before: bytes, places: set[int]) -> None:
    after = bytearray(before)
    for place in places:
        after[place] ^= 0xFF
    ranges = _differences(before, bytes(after))
    for start, end in ranges:
        assert start in places
        assert end - 1 in places
    assert ranges == sorted(ranges)
    assert sum(end - start for start, end in ranges) >= len(places)
