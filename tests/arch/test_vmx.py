"""VMX as data: encodings, exit information, and the capability values of the manual."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.arch import vmcs, vmx
from trapline.arch.exception import Vector
from trapline.arch.vmcs import MASKS, Field, Type, Width, field_of, index_of, is_high
from trapline.arch.vmx import EventInformation, EventType, ExitReason


@pytest.mark.parametrize(
    ("field", "encoding", "width", "type_"),
    [
        (Field.VIRTUAL_PROCESSOR_ID, 0x0000, Width.WORD, Type.CONTROL),
        (Field.GUEST_IA32_DEBUGCTL, 0x2802, Width.QUAD, Type.GUEST),
        (Field.EXCEPTION_BITMAP, 0x4004, Width.DOUBLE, Type.CONTROL),
        (Field.VM_EXIT_REASON, 0x4402, Width.DOUBLE, Type.EXIT_INFORMATION),
        (Field.EXIT_QUALIFICATION, 0x6400, Width.NATURAL, Type.EXIT_INFORMATION),
        (Field.GUEST_DR7, 0x681A, Width.NATURAL, Type.GUEST),
        (Field.GUEST_PENDING_DBG_EXCEPTIONS, 0x6822, Width.NATURAL, Type.GUEST),
        (Field.HOST_RIP, 0x6C16, Width.NATURAL, Type.HOST),
    ],
)
def test_fields_that_this_feature_needs(field, encoding, width, type_):
    assert field == encoding
    assert vmcs.width_of(encoding) is width
    assert vmcs.type_of(encoding) is type_


def test_the_table_is_whole():
    assert len(Field) == 205
    assert len({int(field) for field in Field}) == 205
    assert all(not is_high(field) and field >> 12 & 1 == 0 for field in Field)


def test_names_agree_with_the_type_in_the_encoding():
    for field in Field:
        if field.name.startswith("HOST_"):
            assert vmcs.type_of(field) is Type.HOST, field
        if field.name.endswith("_SELECTOR"):
            assert vmcs.width_of(field) is Width.WORD, field
        if field.name.endswith(("_BASE", "GUEST_RIP")):
            assert vmcs.width_of(field) is Width.NATURAL, field


@given(st.integers(0, 0xFFFFFFFF))
def test_an_encoding_names_a_field_or_nothing(encoding):
    field = field_of(encoding)
    if field is None:
        assert encoding not in MASKS
    else:
        assert field | (encoding & 1) == encoding


def test_only_64_bit_fields_have_an_upper_half():
    assert field_of(0x2803) is Field.GUEST_IA32_DEBUGCTL
    assert field_of(0x4005) is None
    assert field_of(0x681B) is None


def test_masks_are_as_wide_as_the_fields():
    assert MASKS[Field.GUEST_CS_SELECTOR] == 0xFFFF
    assert MASKS[Field.GUEST_CS_LIMIT] == 0xFFFFFFFF
    assert MASKS[Field.GUEST_RIP] == MASKS[Field.TSC_OFFSET] == (1 << 64) - 1
    assert vmcs.HIGHEST_INDEX == max(map(index_of, Field)) == 41


def test_the_debug_exception_s_exit_information():
    assert vmx.event(Vector.DB, EventType.HARDWARE_EXCEPTION) == 0x80000301
    assert vmx.event(Vector.DB, EventType.PRIVILEGED_SOFTWARE_EXCEPTION) == 0x80000501


@given(vector=st.integers(0, 255), type_=st.sampled_from(EventType), has_error_code=st.booleans())
def test_event_information_round_trips(vector, type_, has_error_code):
    seen = EventInformation(vmx.event(vector, type_, has_error_code))
    assert (seen.vector, seen.type, seen.error_code_valid) == (vector, type_, has_error_code)
    assert seen.valid
    assert not seen & vmx.EVENT_RESERVED


def test_the_bus_lock_exit():
    assert ExitReason.BUS_LOCK | vmx.REASON_BUS_LOCK == 0x0400004A
    assert vmx.PROC2_BUS_LOCK_DETECTION == 0x40000000


def test_default1_values_hold_the_debug_controls_and_true_msrs_release_them():
    assert vmx.EXIT_DEFAULT1 & ~vmx.EXIT_TRUE_DEFAULT1 == vmx.EXIT_SAVE_DEBUG_CONTROLS == 4
    assert vmx.ENTRY_DEFAULT1 & ~vmx.ENTRY_TRUE_DEFAULT1 == vmx.ENTRY_LOAD_DEBUG_CONTROLS == 4
    assert vmx.PROC_TRUE_DEFAULT1 == 0x04006172


@pytest.mark.parametrize("prefix", ["PIN_", "PROC_", "PROC2_", "EXIT_", "ENTRY_", "EPT_CAP_"])
def test_no_two_control_names_share_a_bit(prefix):
    single = [
        number
        for name, number in vars(vmx).items()
        if name.startswith(prefix) and "DEFAULT1" not in name and isinstance(number, int)
    ]
    assert all(number.bit_count() == 1 for number in single)
    assert len(set(single)) == len(single) > 3
