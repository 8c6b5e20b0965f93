"""Delivery through long mode's IDT in native code, held against the plain one's every result."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.processor.jit.outcome import outcome
from tests.processor.long_mode import (
    DESCRIPTORS,
    GDT,
    HANDLER,
    IDT,
    IST_TOP,
    KERNEL_CS,
    KERNEL_SS,
    STACK_TOP,
    TASK,
    USER_CS,
    LongMode,
)

from trapline.arch.descriptor import SystemType
from trapline.arch.registers import RFLAGS_AC, RFLAGS_IF, RFLAGS_NT, RFLAGS_RF, RFLAGS_TF
from trapline.processor import exceptions
from trapline.processor.fault import Fault
from trapline.processor.guest import EXTERNAL_INTERRUPT, HARDWARE_EXCEPTION, NMI

VECTOR, GATE = 0x31, "gate"
STACKS = (STACK_TOP - 48, IST_TOP - 48)


def _machine(engine: str, ring: str, changes: dict[str, Any]) -> LongMode:
    machine = LongMode(engine=engine)
    changes = dict(changes)
    gate, descriptor = changes.pop(GATE, {}), changes.pop("descriptor", None)
    getattr(machine, ring)(b"", **changes)
    machine.gate(VECTOR, **gate)
    if descriptor is not None:
        machine.set_word(GDT + KERNEL_CS, descriptor)
    machine.core.memory.privilege_changed()
    memory = machine.core.memory
    for linear in (GDT, IDT, TASK):  # known to native code, as they are after the first time
        memory.read(linear, 8, True)
    for stack in (*STACKS, STACK_TOP - 0x1040):
        memory.write(stack, 8, 0, True)
    return machine


def _both(
    ring: str, error_code: int | None = None, kind: int = HARDWARE_EXCEPTION, **changes: Any
) -> tuple[LongMode, bool]:
    """Deliver on both engines, with the same outcome; the fast one's machine, and whether native
    code did it."""
    plain = _machine("interp", ring, changes)
    fast = _machine("jit", ring, changes)
    engine = fast.core.engine
    assert engine is not None
    answers: list[bool] = []

    def deliver(vector: int, code: int | None) -> bool:
        answers.append(type(engine).deliver(engine, vector, code))
        return answers[-1]

    engine.deliver = deliver  # type: ignore[method-assign]
    for machine in (plain, fast):
        exceptions.inject(machine.core, VECTOR, error_code, kind=kind)
    assert outcome(fast) == outcome(plain)
    assert bytes(fast.bus.bytes) == bytes(plain.bus.bytes)
    return fast, answers[0]


@pytest.mark.parametrize("error_code", [None, 0, 0x1234])
@pytest.mark.parametrize("ring", ["user", "user_32", "kernel"])
def test_the_usual_delivery_is_native(ring: str, error_code: int | None) -> None:
    machine, native = _both(ring, error_code, rflags=RFLAGS_IF | 0x8D5 | 2)
    state, frame = machine.state, machine.frame(error_code is not None)
    assert native
    assert (state.rip, state.cpl, state.cs_selector) == (HANDLER + 16 * VECTOR, 0, KERNEL_CS)
    assert (frame.error_code, frame.rflags) == (error_code, RFLAGS_IF | 0x8D5 | 2)
    assert not state.rflags & RFLAGS_IF
    assert state.ss_selector == (KERNEL_SS if ring == "kernel" else 0)


def test_a_trap_gate_leaves_interrupts_enabled() -> None:
    machine, native = _both("user", gate={"type": SystemType.TRAP_GATE}, rflags=RFLAGS_IF | 2)
    assert native
    assert machine.state.rflags == RFLAGS_IF | 2


def test_flags_are_pushed_as_they_were_and_then_cleared() -> None:
    flags = RFLAGS_TF | RFLAGS_RF | RFLAGS_NT | 2
    machine, native = _both("user", rflags=flags)
    assert native
    assert (machine.frame().rflags, machine.state.rflags) == (flags, 2)


@pytest.mark.parametrize("ring", ["user", "kernel"])
def test_an_interrupt_stack_is_used_natively(ring: str) -> None:
    machine, native = _both(ring, gate={"interrupt_stack": 1})
    assert native
    assert machine.state.rsp == IST_TOP - 40


def test_the_present_stack_is_aligned_natively() -> None:
    machine, native = _both("kernel", 5, rsp=STACK_TOP - 0x1001)
    assert native
    assert machine.state.rsp == STACK_TOP - 0x1010 - 48


def test_an_nmi_blocks_the_next() -> None:
    machine, native = _both("user", kind=NMI)
    assert native
    assert machine.state.nmi_blocked


def test_python_knows_the_ring_that_native_code_delivered_to() -> None:
    machine = _machine("jit", "user", {})
    with pytest.raises(Fault):
        machine.core.memory.read(HANDLER, 1)
    exceptions.inject(machine.core, VECTOR)
    assert machine.core.memory.read(HANDLER, 1) == 0xF4


@pytest.mark.parametrize(
    "changes",
    [
        {"rflags": RFLAGS_AC | 2},
        {"idtr_limit": 16 * VECTOR + 14},
        {"gate": {"is_present": False}},
        {"gate": {"type": SystemType.CALL_GATE}},
        {"gate": {"selector": 0}},
        {"gate": {"selector": USER_CS}},
        {"gate": {"selector": KERNEL_SS}},
        {"gate": {"selector": 0x7B}},
        {"gate": {"selector": KERNEL_CS | 4}},
        {"gate": {"interrupt_stack": 7}, "tr_limit": 90},
        {"gate": {"interrupt_stack": 2}},
        {"descriptor": DESCRIPTORS[KERNEL_CS] & ~(1 << 47)},
        {"descriptor": DESCRIPTORS[KERNEL_CS] & ~(1 << 40)},
        {"descriptor": DESCRIPTORS[KERNEL_CS] | 1 << 42},
        {"descriptor": DESCRIPTORS[KERNEL_CS] | 1 << 54},
        {"tr_limit": 10},
    ],
)
def test_an_unusual_delivery_is_the_plain_ones(changes: dict[str, Any]) -> None:
    _, native = _both("user", **changes)
    assert not native


_SELECTORS = st.sampled_from((KERNEL_CS, KERNEL_CS, KERNEL_SS, USER_CS, 0, 4))
_TYPES = st.sampled_from((SystemType.INTERRUPT_GATE, SystemType.TRAP_GATE, SystemType.CALL_GATE))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(("user", "user_32", "kernel")),
    st.one_of(st.none(), st.integers(0, 0xFFFF)),
    st.sampled_from((HARDWARE_EXCEPTION, EXTERNAL_INTERRUPT, NMI)),
    st.integers(0, (1 << 22) - 1),
    st.fixed_dictionaries(
        {"selector": _SELECTORS, "type": _TYPES, "interrupt_stack": st.integers(0, 2)}
    ),
    st.integers(STACK_TOP - 0x1080, STACK_TOP - 0xF80),
)
def test_any_delivery(
    ring: str, error_code: int | None, kind: int, flags: int, gate: dict[str, Any], rsp: int
) -> None:
    flags = flags & ~(1 << 17) | 2
    _both(ring, error_code, kind, rflags=flags, gate=gate, rsp=rsp)
