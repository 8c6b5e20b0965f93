"""Advice fits the memory and gets the padding right."""

from __future__ import annotations

import pytest

from tests.report.written import END, MAP, SITE, start, summary
from trapline.report.advice import advise
from trapline.trace import Field, Place, Step


def advice(tmp_path, place: Place | None, **changes) -> str:
    (site,) = summary(tmp_path, start(), MAP, {**SITE, **changes}, END).sites
    site.place = place
    return advise(site)


@pytest.mark.parametrize(
    ("linear", "size", "padding"),
    [(0x3E, 4, "2 bytes"), (0x3F, 4, "1 byte"), (0x3D, 4, "3 bytes"), (0x39, 8, "7 bytes"),
     (0x3F, 2, "1 byte")],
)  # fmt: skip
def test_padding_restores_natural_alignment(tmp_path, linear, size, padding):
    sentence = advice(tmp_path, None, linear=0x600000 + linear, size=size)
    assert f"{padding} of padding before it" in sentence
    assert f"alignas({size})" in sentence


def test_each_kind_of_memory_has_its_own_words(tmp_path):
    assert "in counters:" in advice(tmp_path, Place("global", "...", "counters"))
    assert "char buffer" in advice(tmp_path, Place("stack", "stack of thread 10"))
    assert "Allocators" in advice(tmp_path, Place("heap", "heap"))
    assert "Allocators" in advice(tmp_path, Place("anonymous", "anonymous mapping"))
    assert "Make the operand" in advice(tmp_path, Place("file", "file mapping /x"))


def test_alignment_does_not_help_uncached_memory(tmp_path):
    sentence = advice(tmp_path, Place("file", "file mapping /dev/mem"), cause="uncached")
    assert "not write-back" in sentence and "alignas" not in sentence


def test_a_known_field_is_told_what_its_struct_does_to_it(tmp_path):
    field = Field("table[1].hits", 128, (Step("table[1].hits", "record", 62),))
    sentence = advice(tmp_path, Place("global", "...", "table", field))
    assert sentence == (
        "table[1].hits begins 62 bytes into struct record, no multiple of 4:"
        " put 2 bytes of padding before it, or do without packed."
    )


def test_a_well_placed_field_blames_its_object(tmp_path):
    sentence = advice(
        tmp_path,
        Place("stack", "...", None, Field("one.hits", 60, (Step("one.hits", "record", 60),))),
    )
    assert sentence == "Declare one with alignas(4), so that one.hits is aligned."


def test_an_offset_into_a_buffer_is_named(tmp_path):
    sentence = advice(tmp_path, Place("stack", "...", None, Field("buffer[57]", 57)), size=8)
    assert sentence == (
        "buffer[57] is 57 bytes into buffer, no multiple of 8:"
        " use an offset that is one, and declare buffer with alignas(8)."
    )


def test_an_aligned_variable_is_not_told_to_be_aligned(tmp_path):
    """alignas on what is at a multiple of the size already cannot change anything."""
    field = Field("buffer[60]", 60)
    sentence = advice(tmp_path, Place("global", "...", "buffer", field), linear=0x60003C, size=8)
    assert sentence == (
        "buffer[60] is 60 bytes into buffer, no multiple of 8: use an offset that is one."
    )


def test_the_outermost_misplaced_member_is_named(tmp_path):
    steps = (Step("s.mid", None, 59), Step("s.mid.in", None, 3), Step("s.mid.in.v", None, 0))
    field = Field("s.mid.in.v", 62, steps)
    sentence = advice(tmp_path, Place("global", "...", "s", field))
    assert sentence == (
        "s.mid begins 59 bytes into its struct, no multiple of 4:"
        " put 2 bytes of padding before it, or do without packed."
    )


def test_a_member_whose_struct_is_right_blames_where_the_struct_is(tmp_path):
    field = Field("one.in.v", 64, (Step("one.in", "a", 59), Step("one.in.v", "b", 5)))
    sentence = advice(tmp_path, Place("global", "...", "one", field))
    assert sentence == "Declare one with alignas(4), so that one.in.v is aligned."
