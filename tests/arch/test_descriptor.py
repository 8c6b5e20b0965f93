"""Descriptors: known words, and build and parse as each other's inverse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.arch import descriptor
from trapline.arch.descriptor import (
    AR_DESCRIPTOR,
    AR_G,
    AccessRights,
    Gate,
    SystemType,
    build_gate,
    build_segment,
    build_system_segment,
    parse_gate,
    parse_segment,
    with_dpl,
)

RIGHTS = st.integers(0, 0xFFFF).map(lambda n: n & AR_DESCRIPTOR)
BASES = st.integers(0, (1 << 32) - 1)


def test_linux_s_kernel_code_segment():
    """GDT_ENTRY_KERNEL_CS of a 64-bit kernel is 0x00af9b000000ffff."""
    assert parse_segment(0x00AF9B000000FFFF) == (0, 0xFFFFFFFF, 0xA09B)
    assert descriptor.AR_CODE64 == 0xA09B
    assert build_segment(0, 0xFFFFFFFF, 0xA09B) == 0x00AF9B000000FFFF


def test_flat_segments_by_their_known_words():
    flat = descriptor.FLAT_LIMIT
    assert build_segment(0, flat, descriptor.AR_DATA32) == 0x00CF93000000FFFF
    assert build_segment(0, flat, descriptor.AR_CODE32) == 0x00CF9B000000FFFF
    assert build_segment(0, flat, with_dpl(descriptor.AR_CODE64, 3)) == 0x00AFFB000000FFFF
    assert descriptor.AR_VIRTUAL_8086 == 0xF3


@given(base=BASES, pages=st.integers(0, 0xFFFFF), rights=RIGHTS)
def test_segments_round_trip(base, pages, rights):
    limit = pages << 12 | 0xFFF if rights & AR_G else pages
    assert parse_segment(build_segment(base, limit, rights)) == (base, limit, rights)


@given(base=st.integers(0, (1 << 64) - 1))
def test_a_long_mode_tss_keeps_its_whole_base(base):
    low, high = build_system_segment(base, 0x67, descriptor.AR_TSS_BUSY)
    assert parse_segment(low, high) == (base, 0x67, 0x8B)
    assert high >> 32 == 0


@given(low=st.integers(0, (1 << 64) - 1))
def test_every_descriptor_is_what_its_parts_build(low):
    base, limit, rights = parse_segment(low)
    assert build_segment(base, limit, rights) == low


@pytest.mark.parametrize(("limit", "rights"), [(0x1000, AR_G), (1 << 20, 0)])
def test_a_limit_that_no_descriptor_can_hold_is_refused(limit, rights):
    with pytest.raises(ValueError, match="limit"):
        build_segment(0, limit, rights)


@given(
    offset=st.integers(0, (1 << 64) - 1),
    selector=st.integers(0, 0xFFFF),
    kind=st.sampled_from([SystemType.INTERRUPT_GATE, SystemType.TRAP_GATE]),
    dpl=st.integers(0, 3),
    stack=st.integers(0, 7),
)
def test_long_mode_gates_round_trip(offset, selector, kind, dpl, stack):
    gate = Gate(selector, offset, kind, dpl, True, stack)
    assert parse_gate(*build_gate(gate)) == gate


def test_a_16_bit_gate_has_a_16_bit_offset():
    gate = Gate(8, 0x1234, SystemType.TRAP_GATE16, 0, True)
    low, _ = build_gate(gate)
    assert parse_gate(low | 0xFFFF << 48).offset == 0x1234


def test_the_view_reads_what_the_constants_set():
    rights = AccessRights(with_dpl(descriptor.AR_CODE64, 3))
    assert (rights.type, rights.s, rights.dpl, rights.p) == (11, True, 3, True)
    assert (rights.l, rights.db, rights.g, rights.unusable) == (True, False, True, False)
