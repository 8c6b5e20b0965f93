"""System instructions in native code: the same end as microcode's, and microcode for the rest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.processor.jit.outcome import outcome
from tests.processor.long_mode import (
    DESCRIPTORS,
    GDT,
    KERNEL,
    KERNEL_CS,
    KERNEL_SS,
    STACK_TOP,
    USER,
    USER32_CS,
    USER_CS,
    USER_SS,
    USER_STACK,
    LongMode,
)
from tests.processor.scripted_guest import ScriptedGuest

from trapline.arch.debug import DR7_GD
from trapline.arch.descriptor import AR_UNUSABLE
from trapline.arch.registers import (
    CR0_AM,
    EFER_SCE,
    RFLAGS_AC,
    RFLAGS_CF,
    RFLAGS_IF,
    RFLAGS_NT,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_ZF,
)
from trapline.processor import boundary
from trapline.processor.fault import Fault
from trapline.processor.guest import Leave
from trapline.processor.jit.layout import Exit
from trapline.processor.segment import fill

SYSCALL, SYSRETQ, IRETQ = b"\x0f\x05", b"\x48\x0f\x07", b"\x48\xcf"
READ_DR6, WRITE_DR6 = b"\x0f\x21\xf0", b"\x0f\x23\xf0"  # to and from RAX
SYSCALL_TARGET = KERNEL + 0x100
FRAME = STACK_TOP - 0x100
HALF = 1 << 47


def _machine(engine: str, code: bytes, ring: str, changes: dict[str, Any]) -> LongMode:
    machine = LongMode(engine=engine)
    state = machine.state
    state.star, state.lstar = 0x0008 << 32 | 0x0018 << 48, SYSCALL_TARGET
    state.sfmask = RFLAGS_IF | RFLAGS_TF
    for name in ("ds", "es", "fs", "gs"):
        setattr(state, f"{name}_attributes", AR_UNUSABLE)
    changes = dict(changes)
    frame = changes.pop("frame", None)
    descriptors = changes.pop("descriptors", {})
    data = changes.pop("data", None)
    pending = changes.pop("vector", None)
    getattr(machine, ring)(code, **changes)
    machine.core.memory.mode_changed()
    machine.core.memory.privilege_changed()
    for selector, descriptor in descriptors.items():
        machine.set_word(GDT + (selector & ~7), descriptor)
    if data is not None:
        fill(state, "ds", data, DESCRIPTORS[data])
    if frame is not None:
        state.rsp = FRAME
        for i, word in enumerate(frame):
            machine.set_word(FRAME + 8 * i, word)
    for linear in (FRAME, GDT):  # known to native code, as they are after the first time
        machine.core.memory.read(linear, 8, True)
    if pending is not None:
        machine.core.interrupt_lines.raise_interrupt(pending)
    return machine


def _both(code: bytes, ring: str, **changes: Any) -> tuple[LongMode, bool]:
    """One instruction on both engines, with the same outcome; the fast one's machine, and
    whether native code did it."""
    plain = _machine("interp", code, ring, changes)
    fast = _machine("jit", code, ring, changes)
    expected = raised = None
    try:
        boundary.before(plain.core)
        plain.core.interpret()
        boundary.after(plain.core)
    except Fault as fault:
        expected = (fault.vector, fault.error_code, fault.payload)
    native = False
    try:
        native = fast.core.step_natively()
    except Fault as fault:
        raised = (fault.vector, fault.error_code, fault.payload)
    assert raised == expected
    assert outcome(fast) == outcome(plain)
    return fast, native


def _to_user(rflags: int = 2, rip: int = USER, rsp: int = USER_STACK, **changes: Any) -> Any:
    cs, ss = changes.pop("cs", USER_CS), changes.pop("ss", USER_SS)
    return _both(IRETQ, "kernel", frame=(rip, cs, rflags, rsp, ss), **changes)


# -- the plain cases are native --------------------------------------------------------------------


def test_syscall_is_native() -> None:
    flags = RFLAGS_IF | RFLAGS_NT | RFLAGS_CF | RFLAGS_ZF | 2
    machine, native = _both(SYSCALL, "user", rflags=flags)
    state = machine.state
    assert native
    assert (state.rip, state.cpl, state.rcx, state.r11) == (SYSCALL_TARGET, 0, USER + 2, flags)
    assert state.rflags == flags & ~RFLAGS_IF


def test_sysret_is_native() -> None:
    flags = RFLAGS_IF | RFLAGS_CF | RFLAGS_RF | 2
    machine, native = _both(SYSRETQ, "kernel", rcx=USER, r11=flags)
    assert native
    assert (machine.state.rip, machine.state.cpl) == (USER, 3)
    assert machine.state.rflags == flags & ~RFLAGS_RF


def test_iretq_to_the_program_is_native() -> None:
    flags = RFLAGS_IF | RFLAGS_ZF | 2
    machine, native = _to_user(flags)
    state = machine.state
    assert native
    assert (state.rip, state.cpl, state.rsp, state.rflags) == (USER, 3, USER_STACK, flags)
    assert (state.cs_selector, state.ss_selector) == (USER_CS, USER_SS)


def test_mov_dr6_is_native() -> None:
    machine, native = _both(READ_DR6, "kernel", dr6=0xFFFF07F0)
    assert native
    assert machine.state.rax == 0xFFFF07F0
    machine, native = _both(WRITE_DR6, "kernel", rax=0xFFFF, dr6=0xFFFF07F0)
    assert native
    assert machine.state.dr6 == 0xFFFFEFFF


def test_the_ring_that_native_code_goes_to_holds_for_every_access() -> None:
    machine, native = _to_user()
    assert native
    with pytest.raises(Fault) as raised:
        machine.core.memory.read(KERNEL, 8)
    assert (raised.value.vector, raised.value.error_code) == (14, 5)


def test_a_loop_through_the_system_stays_in_native_code() -> None:
    # dec rbx; jz over; syscall; over: ud2 - and at LSTAR: sysretq
    machine = _machine("jit", bytes.fromhex("48ffcb74040f05ebf70f0b"), "user", {"rbx": 50_000})
    at = SYSCALL_TARGET
    machine.bus.bytes[at : at + 3] = SYSRETQ
    while machine.vector is None:
        machine.core._advance()
    assert machine.state.rbx == 0
    assert machine.core.engine is not None and machine.core.engine.entries < 20


# -- the others are microcode's --------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"rflags": RFLAGS_TF | 2},
        {"rflags": RFLAGS_RF | 2},
        {"rflags": RFLAGS_AC | 2, "cr0": 0x80010001 | CR0_AM},
        {"rip": HALF},
        {"rip": (1 << 64) - HALF},
        {"cs": USER32_CS},
        {"cs": KERNEL_CS, "ss": KERNEL_SS},
        {"cs": KERNEL_CS, "ss": 0},
        {"cs": 0},
        {"cs": USER_SS},
        {"cs": USER_CS | 4},
        {"cs": 0x7B},
        {"ss": USER_CS},
        {"ss": 3},
        {"ss": KERNEL_SS},
        {"descriptors": {USER_CS: DESCRIPTORS[USER_CS] & ~(1 << 47)}},
        {"descriptors": {USER_CS: DESCRIPTORS[USER_CS] & ~(1 << 40)}},
        {"descriptors": {USER_CS: DESCRIPTORS[USER_CS] | 1 << 42}},
        {"descriptors": {USER_CS: DESCRIPTORS[USER_CS] | 1 << 54}},
        {"descriptors": {USER_SS: DESCRIPTORS[USER_SS] & ~(1 << 41)}},
        {"descriptors": {USER_SS: DESCRIPTORS[USER_SS] & ~(1 << 40)}},
        {"system_flags": RFLAGS_NT | 2},
        {"nmi_blocked": 1},
        {"data": KERNEL_SS},
        {"vector": 0x30},
        {"gdtr_limit": USER_CS | 3},
    ],
)
def test_an_unusual_iretq_is_the_reference_engines(changes: dict[str, Any]) -> None:
    _, native = _to_user(**changes)
    assert not native


def test_an_iretq_whose_frame_lies_on_two_pages() -> None:
    machine = _machine("jit", IRETQ, "kernel", {})
    machine.state.rsp = at = 0x1F000 - 16
    for i, word in enumerate((USER, USER_CS, 2, USER_STACK, USER_SS)):
        machine.set_word(at + 8 * i, word)
    assert not machine.core.step_natively()
    assert (machine.state.rip, machine.state.rsp) == (USER, USER_STACK)


@pytest.mark.parametrize(
    "changes",
    [
        {"r11": RFLAGS_TF | 2},
        {"r11": RFLAGS_AC | 2},
        {"rcx": HALF},
        {"rcx": (1 << 64) - HALF},
        {"efer": 0xD00},
        {"vector": 0x30},
    ],
)
def test_an_unusual_sysret_is_the_reference_engines(changes: dict[str, Any]) -> None:
    _, native = _both(SYSRETQ, "kernel", **{"rcx": USER, "r11": 2, **changes})
    assert not native


@pytest.mark.parametrize("changes", [{"efer": 0xD00}, {"system_flags": RFLAGS_AC | 2}])
def test_an_unusual_syscall_is_the_reference_engines(changes: dict[str, Any]) -> None:
    _, native = _both(SYSCALL, "user", **changes)
    assert not native


@pytest.mark.parametrize("code", [SYSRETQ, READ_DR6, WRITE_DR6])
def test_they_fault_at_cpl_3(code: bytes) -> None:
    _, native = _both(code, "user", rcx=USER, r11=2)
    assert not native


@pytest.mark.parametrize(("code", "rax"), [(READ_DR6, 0), (WRITE_DR6, 0), (WRITE_DR6, 1 << 32)])
def test_an_unusual_mov_dr_is_the_reference_engines(code: bytes, rax: int) -> None:
    dr7 = 0x400 if rax else 0x400 | DR7_GD
    _, native = _both(code, "kernel", rax=rax, dr7=dr7)
    assert not native


@pytest.mark.parametrize("code", [READ_DR6, WRITE_DR6])
def test_a_hypervisor_may_intercept_mov_dr(code: bytes) -> None:
    machine = _machine("jit", code, "kernel", {})
    machine.core.guest = guest = ScriptedGuest("dr")
    with pytest.raises(Leave):
        machine.core.step_natively()
    assert guest.asked == [("dr", 6, code == READ_DR6, 0, 3)]


PORTS = [
    (b"\xe6\x80", (0x80, 1, False, 2, 0x40)),  # out 0x80, al
    (b"\x66\xe7\x81", (0x81, 2, False, 3, 0x40)),  # out 0x81, ax
    (b"\xef", (0x1234, 4, False, 1, 0)),  # out dx, eax
    (b"\xe4\x82", (0x82, 1, True, 2, 0x40)),  # in al, 0x82
    (b"\xec", (0x1234, 1, True, 1, 0)),  # in al, dx
]


@pytest.mark.parametrize(("code", "asked"), PORTS)
@pytest.mark.parametrize(("ring", "iopl"), [("kernel", 0), ("user", 3)])
def test_ports_leave_the_guest_as_microcode_leaves_it(
    code: bytes, asked: tuple[Any, ...], ring: str, iopl: int
) -> None:
    for engine in ("interp", "jit"):
        changes = {"rdx": 0xFFFF1234, "system_flags": iopl << 12 | 2}
        machine = _machine(engine, code, ring, changes)
        machine.core.guest = guest = ScriptedGuest("io")
        before = outcome(machine)
        with pytest.raises(Leave):
            machine.core._advance()
        assert guest.asked == [("io", *asked, 0)]
        assert outcome(machine) == before
        assert machine.state.exit_reason == (Exit.PORT if engine == "jit" else 0)


@pytest.mark.parametrize(("code", "asked"), PORTS)
def test_ports_fault_at_cpl_3_before_anybody_is_asked(code: bytes, asked: Any) -> None:
    machine = _machine("jit", code, "user", {"rdx": 0x1234})
    machine.core.guest = guest = ScriptedGuest("io")
    with pytest.raises(Fault):
        machine.core.step_natively()
    assert guest.asked == []


def test_a_pending_interrupt_comes_as_soon_as_iretq_enables_it() -> None:
    changes = {"frame": (USER, USER_CS, RFLAGS_IF | 2, USER_STACK, USER_SS)}
    machine = _machine("jit", IRETQ, "kernel", changes)
    machine.core.interrupt_lines.raise_interrupt(0x30)
    while machine.vector is None:
        machine.core._advance()
    assert machine.vector == 0x30
    assert machine.frame().rip == USER


# -- anything --------------------------------------------------------------------------------------

_FLAGS = st.integers(0, (1 << 22) - 1)
_RIPS = st.sampled_from((USER, USER + 5, HALF - 1, HALF, 0, (1 << 64) - 1, (1 << 64) - HALF))
_SELECTORS = st.sampled_from((0, 3, 4, KERNEL_CS, KERNEL_SS, USER32_CS, USER_SS, USER_CS, 0x2F))
_EFERS = st.sampled_from((0xD00 | EFER_SCE, 0xD00))


@settings(max_examples=150, deadline=None)
@given(_FLAGS, _RIPS, _SELECTORS, _SELECTORS, st.booleans(), st.sampled_from((None, KERNEL_SS)))
def test_any_iretq(flags: int, rip: int, cs: int, ss: int, nmi: bool, data: int | None) -> None:
    _to_user(flags, rip, cs=cs, ss=ss, nmi_blocked=int(nmi), data=data)


@settings(max_examples=100, deadline=None)
@given(_FLAGS, _RIPS, _EFERS)
def test_any_sysret(flags: int, rip: int, efer: int) -> None:
    _both(SYSRETQ, "kernel", rcx=rip, r11=flags, efer=efer)


@settings(max_examples=100, deadline=None)
@given(_FLAGS, _FLAGS, _EFERS)
def test_any_syscall(flags: int, mask: int, efer: int) -> None:
    allowed = ~(RFLAGS_TF | RFLAGS_RF | 1 << 17)
    _both(SYSCALL, "user", rflags=flags & allowed | 2, sfmask=mask, efer=efer)
