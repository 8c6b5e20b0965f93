"""KVM's structures have KVM's sizes and offsets, and survive the way to bytes and back."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trapline.arch.cpuid import CpuidEntry
from trapline.kvm import DebugRegs, Dtable, Fpu, Regs, Segment, Sregs, VcpuEvents, abi
from trapline.kvm.structures import CPUID_ENTRY, GPR_ORDER, pack_cpuid, unpack_cpuid

QUAD = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("request_code", "value"),
    [
        (abi.GET_REGS, Regs()),
        (abi.SET_REGS, Regs()),
        (abi.GET_SREGS, Sregs()),
        (abi.SET_SREGS, Sregs()),
        (abi.GET_DEBUGREGS, DebugRegs()),
        (abi.GET_VCPU_EVENTS, VcpuEvents()),
        (abi.SET_VCPU_EVENTS, VcpuEvents()),
        (abi.GET_FPU, Fpu()),
    ],
)
def test_a_structure_is_as_long_as_its_ioctl_says(request_code: int, value: Regs) -> None:
    assert len(value.pack()) == request_code >> 16 & 0x3FFF


def test_ioctl_numbers_are_kvms_and_differ() -> None:
    codes = {
        name: number
        for name, number in vars(abi).items()
        if name.isupper() and isinstance(number, int) and number >> 8 & 0xFF == 0xAE
    }
    assert len(codes) > 30
    assert len(set(codes.values())) == len(codes)


@given(st.lists(QUAD, min_size=18, max_size=18))
def test_regs_round_trip_in_kvms_order(words: list[int]) -> None:
    regs = Regs(*words)
    assert Regs.unpack(regs.pack()) == regs
    assert struct.unpack("<18Q", regs.pack()) == tuple(getattr(regs, name) for name in GPR_ORDER)


def test_vcpu_events_lie_where_kvm_has_them() -> None:
    """Offsets of struct kvm_vcpu_events."""
    events = VcpuEvents(
        exception_injected=1, exception_nr=2, exception_has_error_code=3, exception_pending=4,
        exception_error_code=5, interrupt_injected=6, interrupt_nr=7, interrupt_soft=8,
        interrupt_shadow=9, nmi_injected=10, nmi_pending=11, nmi_masked=12, sipi_vector=13,
        flags=14, smi_smm=15, smi_pending=16, smi_smm_inside_nmi=17, smi_latched_init=18,
        triple_fault_pending=19, exception_has_payload=20, exception_payload=21,
    )  # fmt: skip
    data = events.pack()
    expected = {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 8: 6, 9: 7, 10: 8, 11: 9, 12: 10, 13: 11, 14: 12}
    expected |= {16: 13, 20: 14, 24: 15, 25: 16, 26: 17, 27: 18, 28: 19, 55: 20, 56: 21}
    assert {i: byte for i, byte in enumerate(data) if byte} == expected
    assert VcpuEvents.unpack(data) == events


def test_sregs_round_trip() -> None:
    segments = [Segment(i + 1, i + 2, i + 3, i, 1, 3, 1, 1, 0, 1, 0, i % 2) for i in range(8)]
    sregs = Sregs(
        *segments, Dtable(10, 11), Dtable(12, 13), 14, 15, 16, 17, 18, 19, 20, [21, 22, 23, 24]
    )
    data = sregs.pack()
    assert Sregs.unpack(data) == sregs
    assert struct.unpack_from("<Q", data, 224) == (14,)  # cr0
    assert struct.unpack_from("<Q", data, 264) == (19,)  # efer
    assert struct.unpack_from("<H", data, 144 + 12) == (segments[6].selector,)  # tr


@given(st.integers(0, 0x1F0FF).map(lambda word: word & 0x1F0FF))
def test_segment_attributes_are_the_access_rights_of_vmx(attributes: int) -> None:
    segment = Segment.from_attributes(8, 0x1000, 0xFFFF, attributes)
    assert segment.attributes == attributes
    assert Segment.unpack(segment.pack()) == segment


def test_fpu_round_trips_its_wide_registers() -> None:
    fpu = Fpu([1 << 79 | i for i in range(8)], 0x27F, 0x3800, 0xFF, 1, 2, 3, [1 << 127] * 16, 4)
    assert Fpu.unpack(fpu.pack()) == fpu


def test_debugregs_lie_where_kvm_has_them() -> None:
    data = DebugRegs([1, 2, 3, 4], 5, 6).pack()
    assert struct.unpack_from("<7Q", data) == (1, 2, 3, 4, 5, 6, 0)


def test_cpuid_entries_round_trip() -> None:
    entries = [CpuidEntry(7, 0, 1, 1, 2, 1 << 24, 4), CpuidEntry(0x80000001, ecx=5)]
    assert len(pack_cpuid(entries)) == 2 * CPUID_ENTRY.size == 80
    assert unpack_cpuid(pack_cpuid(entries)) == entries
