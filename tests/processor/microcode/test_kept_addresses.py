"""Registers that keep a linear address: which ones they take, by what the processor can.

KVM, is_noncanonical_address(): CR4.LA57 has no say in it (kvm-unit-tests, x86/la57.c).
"""

from __future__ import annotations

import pytest

from tests.processor.long_mode import GDT, KERNEL, TR, LongMode
from trapline.arch import descriptor as d
from trapline.arch.registers import CR4_FSGSBASE

GP = 13
WITH_48, WITH_57, WITH_NONE = 0xFFFF_AAAA_AAAA_A000, 0xFFAA_AAAA_AAAA_A000, 0xAAAA_AAAA_AAAA_A000
WRFSBASE_RAX, WRGSBASE_RAX = b"\xf3\x48\x0f\xae\xd0", b"\xf3\x48\x0f\xae\xd8"
INVPCID_ECX_RBX = b"\x66\x0f\x38\x82\x0b"
AT = 0x11000


def _has_faulted(machine: LongMode, code: bytes, **registers: int) -> bool:
    machine.kernel(code, **registers).step()
    if machine.state.rip == KERNEL + len(code):
        return False
    assert machine.vector == GP
    return True


@pytest.mark.parametrize("code, name", [(b"\x0f\x01\x13", "gdtr"), (b"\x0f\x01\x1b", "idtr")])
def test_descriptor_tables(code: bytes, name: str) -> None:
    for model, address, refused in (
        ("max", WITH_48, False),
        ("max", WITH_57, False),
        ("max", WITH_NONE, True),
        ("sapphire-rapids", WITH_48, False),
        ("sapphire-rapids", WITH_57, True),
    ):
        machine = LongMode(model)
        machine.set_word(AT, 0xFFF, 2)
        machine.set_word(AT + 2, address)
        assert _has_faulted(machine, code, rbx=AT) == refused
        assert (getattr(machine.state, f"{name}_base") == address) != refused


@pytest.mark.parametrize(
    "code, kind",
    [(b"\x0f\x00\xd8", d.AR_P | d.SystemType.TSS_AVAILABLE), (b"\x0f\x00\xd0", d.AR_LDT)],
)
def test_system_segments(code: bytes, kind: int) -> None:
    """LTR and LLDT."""
    for model, address, error_code in (
        ("max", WITH_48, None),
        ("max", WITH_57, None),
        ("max", WITH_NONE, 0),
        ("sapphire-rapids", WITH_57, 0),
    ):
        machine = LongMode(model)
        low, high = d.build_system_segment(address, 0x67, kind)
        machine.set_word(GDT + TR, low)
        machine.set_word(GDT + TR + 8, high)
        assert _has_faulted(machine, code, rax=TR) == (error_code is not None)
        if error_code is None:
            assert address in (machine.state.tr_base, machine.state.ldtr_base)
        else:
            assert machine.frame(has_error_code=True).error_code == error_code


@pytest.mark.parametrize("code, name", [(WRFSBASE_RAX, "fs_base"), (WRGSBASE_RAX, "gs_base")])
def test_segment_bases_take_what_wrmsr_takes(code: bytes, name: str) -> None:
    machine = LongMode("max")
    machine.state.cr4 |= CR4_FSGSBASE
    number = {"fs_base": 0xC000_0100, "gs_base": 0xC000_0101}[name]
    for address, refused in ((WITH_48, False), (WITH_57, False), (WITH_NONE, True)):
        assert _has_faulted(machine, code, rax=address) == refused
        assert (getattr(machine.state, name) == address) != refused
        halves = {"rax": address & 0xFFFF_FFFF, "rdx": address >> 32}
        assert _has_faulted(machine, b"\x0f\x30", rcx=number, **halves) == refused


def test_invpcid_of_an_address() -> None:
    machine = LongMode("max")
    for address, refused in ((WITH_48, False), (WITH_57, False), (WITH_NONE, True)):
        machine.set_word(AT, 0)
        machine.set_word(AT + 8, address)
        assert _has_faulted(machine, INVPCID_ECX_RBX, rcx=0, rbx=AT) == refused
