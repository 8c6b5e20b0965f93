"""Call gates of 16, 32 and 64 bits: to the same ring, inwards with parameters, and what is refused.

The gate is open to CPL 3; its target halts, so that its stack can be looked at, and returns far.
"""

from __future__ import annotations

import pytest

from tests.kvm.matrix import modes
from tests.kvm.matrix.laboratory import LOG, OTHER, SURFACES, Laboratory
from tests.kvm.matrix.model import Event
from trapline.arch.descriptor import (
    AR_CODE32,
    AR_CODE64,
    FLAT_LIMIT,
    TYPE_CONFORMING,
    SystemType,
    with_dpl,
)

GATE, CONFORMING = 0x43, 0x50
TARGET16 = 0xA000  # in reach of a 16-bit offset
CALL, JMP, UD2 = "9a 00000000 4300", "ea 00000000 4300", "0f0b"
KERNEL_TOP = modes.KERNEL_STACK + modes.STACK_TOP
PUSH_TWO = "68 22222222 68 11111111"
everywhere = pytest.mark.parametrize("name", SURFACES)


def gated(name: str, mode: str, cpl: int, kind: int, count: int, code: str) -> Laboratory:
    """A guest whose gate leads to `code` in ring 0."""
    lab = Laboratory(name, mode, cpl)
    at = TARGET16 if kind == SystemType.CALL_GATE16 else OTHER
    lab.put(at, code)
    lab.gate(GATE, modes.HANDLER_CS, at, kind, 3, count)
    return lab


def stacked(lab: Laboratory, size: int, count: int) -> list[int]:
    at = lab.get("rsp")
    return [lab.word(at + size * i, size) for i in range(count)]


@everywhere
def test_inwards_with_two_parameters(name: str) -> None:
    """SDM 3A, "Stack Switching": SS, ESP, the parameters, CS, EIP, on the inner ring's stack."""
    lab = gated(name, "protected 32", 3, SystemType.CALL_GATE, 2, "f4 ca 0800")  # hlt; retf 8
    assert lab.run(f"{PUSH_TWO} {CALL} {UD2}") is None
    assert lab.get("rip") == OTHER + 1
    user = modes.USER_STACK + modes.STACK_TOP
    back = lab.at + 17
    frame = [back, modes.GUEST_CS | 3, 0x11111111, 0x22222222, user - 8, modes.GUEST_SS | 3]
    assert stacked(lab, 4, 6) == frame
    assert lab.get("rsp") == KERNEL_TOP - 24
    assert lab.go() == Event(6, 17)
    assert lab.word(lab.get("rsp") + 12) == user  # RETF 8 took them off both stacks


@everywhere
def test_a_16_bit_gate_pushes_words(name: str) -> None:
    lab = gated(name, "protected 32", 3, SystemType.CALL_GATE16, 1, "f4 66ca 0200")
    assert lab.run(f"66 68 3412 {CALL} {UD2}") is None  # push 0x1234
    user = modes.USER_STACK + modes.STACK_TOP - 2 & 0xFFFF
    assert lab.get("rip") == TARGET16 + 1
    assert stacked(lab, 2, 5) == [
        lab.at + 11 & 0xFFFF,
        modes.GUEST_CS | 3,
        0x1234,
        user,
        modes.GUEST_SS | 3,
    ]


@everywhere
def test_in_16_bit_code(name: str) -> None:
    """A 16-bit gate between 16-bit segments, and back."""
    lab = gated(name, "protected 16", 3, SystemType.CALL_GATE16, 1, "f4 ca 0200")
    assert lab.run(f"68 3412 9a 0000 4300 {UD2}") is None
    at = modes.KERNEL_STACK + (lab.get("rsp") & 0xFFFF)
    words = [lab.word(at + 2 * i, 2) for i in range(5)]
    assert words == [
        lab.at + 8,
        modes.GUEST_CS | 3,
        0x1234,
        modes.STACK_TOP - 2,
        modes.GUEST_SS | 3,
    ]
    assert lab.go() == Event(6, 8)


@everywhere
def test_in_the_same_ring_nothing_is_copied(name: str) -> None:
    lab = gated(name, "protected 32", 0, SystemType.CALL_GATE, 5, "f4 cb")
    lab.gate(GATE, modes.HANDLER_CS, OTHER, SystemType.CALL_GATE, 0, 5)
    assert lab.run("9a 00000000 4000 0f0b") is None
    assert stacked(lab, 4, 2) == [lab.at + 7, modes.GUEST_CS]
    assert lab.get("rsp") == KERNEL_TOP - 8
    assert lab.go() == Event(6, 7)


@everywhere
@pytest.mark.parametrize("mode", ["long", "long 5-level", "compatibility"])
def test_a_64_bit_gate(name: str, mode: str) -> None:
    """Quadwords, no parameters whatever the gate says, SS null with the new RPL."""
    lab = gated(name, mode, 3, SystemType.CALL_GATE, 0, "f4 8cd2 48cb")  # hlt; mov edx, ss; retfq
    lab.memory.write(LOG, bytes(4) + GATE.to_bytes(2, "little"))
    far = f"ff 1c 25 {LOG.to_bytes(4, 'little').hex()}"  # call far [LOG]
    code, length = (CALL, 7) if mode == "compatibility" else (far, 7)
    assert lab.run(f"{code} {UD2}", rdx=7) is None
    user = modes.USER_STACK + modes.STACK_TOP
    assert stacked(lab, 8, 4) == [lab.at + length, modes.GUEST_CS | 3, user, modes.GUEST_SS | 3]
    assert lab.get("rsp") == KERNEL_TOP - 32
    assert lab.go() == Event(6, length)
    assert lab.get("rdx") & 0xFFFF == 0


@everywhere
def test_a_jump_may_not_change_rings(name: str) -> None:
    lab = gated(name, "protected 32", 3, SystemType.CALL_GATE, 0, "f4")
    assert lab.run(JMP) == Event(13, 0, error_code=modes.HANDLER_CS)


@everywhere
def test_a_jump_through_a_gate_to_conforming_code(name: str) -> None:
    lab = gated(name, "protected 32", 3, SystemType.CALL_GATE, 0, UD2)
    lab.segment(CONFORMING, 0, FLAT_LIMIT, AR_CODE32 | TYPE_CONFORMING)
    lab.gate(GATE, CONFORMING, OTHER, SystemType.CALL_GATE, 3)
    event = lab.run(JMP)
    assert event == Event(6, OTHER - lab.at)
    assert lab.word(lab.get("rsp") + 4) == CONFORMING | 3


@everywhere
def test_a_gate_to_an_outer_ring_is_refused(name: str) -> None:
    lab = Laboratory(name, "protected 32", 0)
    lab.segment(CONFORMING, 0, FLAT_LIMIT, with_dpl(AR_CODE32, 3))
    lab.gate(0x40, CONFORMING, OTHER, SystemType.CALL_GATE, 0)
    assert lab.run("9a 00000000 4000") == Event(13, 0, error_code=CONFORMING)


@everywhere
@pytest.mark.parametrize("dpl", [0, 2])
def test_a_gate_is_closed_to_outer_rings(name: str, dpl: int) -> None:
    lab = Laboratory(name, "protected 32", 3)
    lab.gate(GATE, modes.HANDLER_CS, OTHER, SystemType.CALL_GATE, dpl)
    assert lab.run(CALL) == Event(13, 0, error_code=GATE & ~3)


@everywhere
def test_long_mode_wants_a_64_bit_target(name: str) -> None:
    """SDM 3A, "IA-32e Mode Call Gates": L set and D clear, or #GP(selector)."""
    lab = Laboratory(name, "compatibility", 3)
    lab.segment(CONFORMING, 0, FLAT_LIMIT, AR_CODE32)
    lab.gate(GATE, CONFORMING, OTHER, SystemType.CALL_GATE, 3)
    assert lab.run(CALL) == Event(13, 0, error_code=CONFORMING)
    lab.segment(CONFORMING, 0, FLAT_LIMIT, AR_CODE64)
    lab.put(OTHER, "f4")
    assert lab.run(CALL) is None


@everywhere
def test_a_missing_inner_stack_is_found_before_anything_is_done(name: str) -> None:
    """SS0 of the TSS is null: #TS(0), and the caller's registers are as they were."""
    lab = gated(name, "protected 32", 3, SystemType.CALL_GATE, 2, "f4")
    lab.gate(GATE, modes.HANDLER_CS, OTHER, SystemType.CALL_GATE, 3, 2)
    lab.segment(0x50, 0, FLAT_LIMIT, with_dpl(AR_CODE32, 1))  # an inner ring that is not 0
    lab.gate(GATE, 0x50, OTHER, SystemType.CALL_GATE, 3, 2)
    assert lab.run(f"{PUSH_TWO} {CALL}") == Event(10, 10, error_code=0)
    assert lab.word(lab.get("rsp") + 16) == modes.USER_STACK + modes.STACK_TOP - 8
