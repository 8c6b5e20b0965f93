"""The notation itself: round trips, polarity, and refusal of what cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.arch.bits import Bits, bit, field
from trapline.arch.debug import DebugPayload, Dr6, Dr7
from trapline.arch.descriptor import AccessRights
from trapline.arch.vmx import EventInformation, IoQualification

VIEWS = [Dr6, Dr7, DebugPayload, AccessRights, EventInformation, IoQualification]


class Sample(Bits, width=16):
    """Every sort of field."""

    reset = 0x0010
    ready = bit(0)
    quiet = bit(4, active_low=True)
    level = field(11, 8)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
@given(data=st.data())
def test_reading_every_field_and_writing_it_elsewhere_copies_it(view, data):
    numbers = st.integers(0, (1 << view.width) - 1)
    source, target = view(data.draw(numbers)), data.draw(numbers)
    copied = view(target).replace(**dict(source.fields()))
    assert copied & view.defined == source & view.defined
    assert copied & ~view.defined == target & ~view.defined


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
@given(data=st.data())
def test_changing_one_field_leaves_the_others(view, data):
    before = view(data.draw(st.integers(0, (1 << view.width) - 1)))
    part = data.draw(st.sampled_from(view.parts))
    value = data.draw(st.integers(0, (1 << part.width) - 1))
    after = before.replace(**{part.name: value})
    assert getattr(after, part.name) == value
    assert (before ^ after) & ~part.mask == 0


def test_an_active_low_bit_reads_true_when_it_is_zero():
    assert Sample(0x0000).quiet is True
    assert Sample(0x0010).quiet is False
    assert Sample(0x0010).replace(quiet=True) == 0x0000


def test_the_class_knows_masks_the_view_knows_values():
    assert (Sample.level.mask, Sample.level.offset, Sample.level.width) == (0xF00, 8, 4)
    assert Sample(0x0A10).level == 0xA
    assert Sample.active_low == 0x10
    assert Sample.defined == 0xF11


def test_a_view_is_the_int_it_shows():
    view = Sample(0x0A11)
    assert view == 0x0A11
    assert type(view | 1) is int
    assert view.asserted == ("ready", "level")
    assert repr(view) == "Sample(0xa11: ready level=0xa)"


def test_of_starts_from_the_reset_value():
    assert Sample.of(ready=True) == 0x0011
    assert Sample() == 0x0010


@pytest.mark.parametrize("raw", [-1, 1 << 16])
def test_a_value_outside_the_width_is_refused(raw):
    with pytest.raises(ValueError, match="does not fit the 16 bits of Sample"):
        Sample(raw)


@pytest.mark.parametrize("value", [-1, 16])
def test_a_value_outside_its_field_is_refused(value):
    with pytest.raises(ValueError, match="level holds 4 bits"):
        Sample().replace(level=value)


def test_an_unknown_field_is_refused():
    with pytest.raises(AttributeError, match="^Sample has no field nonsense$"):
        Sample().replace(nonsense=1)


def test_fields_that_overlap_are_refused_when_declared():
    with pytest.raises(TypeError, match=r"^Twice\.second overlaps"):

        class Twice(Bits, width=8):
            first = field(3, 0)
            second = bit(3)


def test_fields_past_the_width_are_refused_when_declared():
    with pytest.raises(TypeError, match=r"^Narrow\.far overlaps"):

        class Narrow(Bits, width=8):
            far = bit(8)
