"""DR6 and DR7: the worked examples of the manuals, and the rules behind them for all values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.arch import debug
from trapline.arch.debug import (
    DR6_ACTIVE_LOW,
    DR6_BD,
    DR6_BREAKPOINTS,
    DR6_BS,
    DR6_BT,
    DR6_BUS_LOCK,
    DR6_RTM,
    DR7_FIXED_1,
    BreakpointKind,
    DebugPayload,
    Dr6,
    Dr7,
    breakpoint_of_dr7,
    enabled_breakpoints,
    force_dr6_reserved,
    force_dr7_reserved,
    merge_dr6,
    payload_of_dr6,
)

WORD = st.integers(0, (1 << 32) - 1)
CAUSES = st.integers(0, (1 << 17) - 1).map(lambda n: n & debug.DR6_VOLATILE)
FLAGS = st.booleans()


@pytest.mark.parametrize(
    ("before", "payload", "has_rtm", "after"),
    [
        pytest.param(0xFFFF0FF0, 0x00000800, False, 0xFFFF07F0, id="bus lock"),
        pytest.param(0xFFFF0FF0, 0x00004800, False, 0xFFFF47F0, id="bus lock and single step"),
        pytest.param(0xFFFF0FF0, 0x00000802, False, 0xFFFF07F2, id="bus lock and breakpoint 1"),
        pytest.param(0xFFFF0FF0, 0x00004809, False, 0xFFFF47F9, id="bus lock, step, 0 and 3"),
        pytest.param(0xFFFF07F0, 0x00004000, False, 0xFFFF47F0, id="step, bit 11 left at 0"),
        pytest.param(0xFFFF0FF0, 0x00000000, False, 0xFFFF0FF0, id="ICEBP"),
        pytest.param(0xFFFF0FF0, 0x00002000, False, 0xFFFF2FF0, id="general detect"),
        pytest.param(0xFFFF0FF0, 0x00010000, True, 0xFFFE0FF0, id="RTM"),
    ],
)
def test_worked_dr6_examples(before, payload, has_rtm, after):
    assert merge_dr6(before, payload, has_bld=True, has_rtm=has_rtm) == after


@pytest.mark.parametrize(
    ("has_bld", "has_rtm", "reads"),
    [
        (False, False, 0xFFFF0FF0),
        (True, False, 0xFFFF07F0),
        (False, True, 0xFFFE0FF0),
        (True, True, 0xFFFE07F0),
    ],
)
def test_zero_written_to_dr6_reads_back_by_feature(has_bld, has_rtm, reads):
    assert force_dr6_reserved(0, has_bld, has_rtm) == reads


def test_the_constants_are_kvm_s():
    assert debug.DR6_FIXED_1 == 0xFFFE07F0
    assert DR6_ACTIVE_LOW & debug.DR6_VOLATILE == DR6_BUS_LOCK | DR6_RTM
    assert debug.DR7_VOLATILE | DR7_FIXED_1 == 0xFFFF2FFF


def test_the_view_s_active_low_bits_are_the_mask_s():
    assert Dr6.active_low == DR6_BUS_LOCK | DR6_RTM
    assert Dr6.defined == debug.DR6_VOLATILE
    assert Dr6().asserted == ()
    assert Dr6(0xFFFF07F0).bld
    assert Dr6.of(bld=True) == 0xFFFF07F0


@given(dr6=WORD, payload=CAUSES, has_bld=FLAGS, has_rtm=FLAGS)
def test_merge_replaces_breakpoints_and_keeps_what_is_sticky(dr6, payload, has_bld, has_rtm):
    after = merge_dr6(dr6, payload, has_bld, has_rtm)
    assert after & DR6_BREAKPOINTS == payload & DR6_BREAKPOINTS
    sticky = DR6_BD | DR6_BS | DR6_BT
    assert after & sticky == (dr6 | payload) & sticky
    lock_before = has_bld and not dr6 & DR6_BUS_LOCK
    assert Dr6(after).bld == (lock_before or (has_bld and bool(payload & DR6_BUS_LOCK)))
    assert Dr6(after).rtm == (has_rtm and bool(payload & DR6_RTM))


@given(dr6=WORD, payload=CAUSES, has_bld=FLAGS, has_rtm=FLAGS)
def test_merge_gives_only_values_that_the_register_can_hold(dr6, payload, has_bld, has_rtm):
    after = merge_dr6(dr6, payload, has_bld, has_rtm)
    assert force_dr6_reserved(after, has_bld, has_rtm) == after
    assert after >> 32 == 0
    assert not after & 1 << 12


@given(payload=CAUSES)
def test_a_fresh_dr6_shows_the_payload_and_nothing_else(payload):
    after = merge_dr6(DR6_ACTIVE_LOW, payload, has_bld=True, has_rtm=True)
    assert payload_of_dr6(after) == payload
    assert Dr6(after).asserted == DebugPayload(payload).asserted


def test_the_enabled_breakpoint_bit_of_a_payload_never_reaches_dr6():
    pending = DebugPayload.of(b0=True, enabled_breakpoint=True)
    assert merge_dr6(DR6_ACTIVE_LOW, pending, has_bld=True, has_rtm=False) == 0xFFFF0FF1


@given(dr7=st.integers(0, (1 << 64) - 1), has_rtm=FLAGS)
def test_dr7_reads_back_with_its_fixed_bits(dr7, has_rtm):
    after = force_dr7_reserved(dr7, has_rtm)
    assert after & (DR7_FIXED_1 | 1 << 12 | 3 << 14) == DR7_FIXED_1
    assert after >> 32 == 0
    assert Dr7(after).rtm == (has_rtm and bool(dr7 & debug.DR7_RTM))
    assert force_dr7_reserved(after, has_rtm) == after


@pytest.mark.parametrize(("code", "size"), [(0, 1), (1, 2), (2, 8), (3, 4)])
@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("kind", BreakpointKind)
def test_a_breakpoint_is_decoded_from_its_own_fields(index, kind, code, size):
    dr7 = Dr7().replace(**{f"rw{index}": kind, f"len{index}": code, f"g{index}": True})
    (found,) = enabled_breakpoints(dr7)
    assert (found.index, found.kind, found.size) == (index, kind, size)
    assert found.is_global and not found.is_local
    assert found.payload == 1 << index


def test_a_disabled_breakpoint_is_still_described():
    assert enabled_breakpoints(DR7_FIXED_1) == ()
    assert not breakpoint_of_dr7(DR7_FIXED_1 | 0xD0000, 0).is_enabled
    assert breakpoint_of_dr7(DR7_FIXED_1 | 0xD0000, 0).size == 4


@given(
    watched=st.integers(0, 64),
    linear=st.integers(0, 80),
    size=st.integers(1, 16),
    code=st.integers(0, 3),
)
def test_a_breakpoint_is_touched_when_one_byte_is_shared(watched, linear, size, code):
    one = breakpoint_of_dr7(DR7_FIXED_1 | code << 18 | 1, 0)
    start = watched - watched % one.size
    guarded = set(range(start, start + one.size))
    assert one.touches(watched, linear, size) == bool(guarded & set(range(linear, linear + size)))
