"""SVM as data: the VMCB's layout, exit codes, intercepts, and the MSR permission map."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from trapline.arch import descriptor, svm, vmcb
from trapline.arch.svm import EventInformation, EventType, ExitCode, Intercept


def test_no_two_fields_of_the_vmcb_overlap():
    inside = [slot for name, slot in vmcb.SLOTS.items() if not name.startswith("segment_")]
    for one, other in pairwise(sorted(inside)):
        assert one.offset + one.size <= other.offset
    assert max(slot.offset + slot.size for slot in inside) == vmcb.SAVE_BASE + vmcb.SAVE_SIZE


def test_offsets_that_this_feature_needs():
    assert vmcb.BUS_LOCK_COUNTER == (0x120, 2)
    assert vmcb.DR7 == (0x560, 8)
    assert vmcb.DR6 == (0x568, 8)
    assert vmcb.DBGCTL == (0x670, 8)
    assert vmcb.TR.offset + vmcb.SEGMENT_BASE.offset == 0x498


@given(st.integers(0, 0xFFFF).map(lambda n: n & descriptor.AR_DESCRIPTOR))
def test_segment_attributes_round_trip(rights):
    attributes = vmcb.attributes_of_rights(rights)
    assert attributes >> 12 == 0
    assert vmcb.rights_of_attributes(attributes) == rights


def test_long_mode_code_has_its_l_bit_at_9():
    assert vmcb.attributes_of_rights(descriptor.AR_CODE64) == 0xA9B


def test_exit_codes():
    assert ExitCode.BUS_LOCK == 0xA5
    assert svm.exception_code(1) == 0x41
    assert svm.exception_code(31) == ExitCode.LAST_EXCP
    assert ExitCode.WRITE_DR7 == 0x37
    assert ExitCode.NPF == 0x400


def test_exit_codes_of_words_3_to_5_are_the_intercepts_own_numbers():
    """APM 2, "SVM Intercept Codes": the codes follow the intercept vector's order."""
    for name in ("INTR", "CPUID", "HLT", "MSR", "SHUTDOWN", "VMRUN", "ICEBP", "RDPRU", "BUS_LOCK"):
        assert ExitCode[name] == Intercept[name], name


def test_the_bus_lock_intercept_is_bit_5_of_word_5():
    assert Intercept.BUS_LOCK == 165
    assert svm.intercept_mask(Intercept.BUS_LOCK) == 1 << 5


@given(
    vector=st.integers(0, 255),
    type_=st.sampled_from(EventType),
    error_code=st.none() | st.integers(0, (1 << 32) - 1),
)
def test_injected_events_round_trip(vector, type_, error_code):
    seen = EventInformation(svm.event(vector, type_, error_code))
    assert (seen.vector, seen.type, seen.valid) == (vector, type_, True)
    assert seen.error_code_valid == (error_code is not None)
    assert seen.error_code == (error_code or 0)


def test_the_msr_map_s_three_ranges():
    assert svm.msrpm_position(0) == 0
    assert svm.msrpm_position(0x1D9) == 2 * 0x1D9
    assert svm.msrpm_position(0xC0000080) == 8 * 0x800 + 0x100
    assert svm.msrpm_position(0xC0010000) == 8 * 0x1000
    assert svm.msrpm_position(0xC0011FFF) == 8 * 0x1800 - 2
    assert svm.msrpm_position(0x2000) is None
    assert svm.msrpm_position(0x40000000) is None
