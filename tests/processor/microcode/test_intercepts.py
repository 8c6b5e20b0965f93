"""What the core asks a hypervisor, in which order with faults, and how it leaves the registers."""

from __future__ import annotations

import pytest

from tests.processor.long_mode import DATA, HANDLER, KERNEL, STACK_TOP, USER, LongMode
from tests.processor.protected import TASK_B, Protected
from tests.processor.scripted_guest import ScriptedGuest
from trapline.arch.registers import CR0_PE, CR0_PG, RFLAGS_IF, RFLAGS_IOPL, RFLAGS_RF, RFLAGS_TF
from trapline.arch.vmx import EVENT_ERROR_CODE, EVENT_VALID
from trapline.processor import boundary
from trapline.processor.buslock import Outcome
from trapline.processor.fault import Fault
from trapline.processor.guest import Leave

NOP, LOCK_INC = b"\x90", b"\xf0\xff\x01"
SPLIT = DATA + 0x3E
BLD = 4
HARDWARE, SOFTWARE, PRIVILEGED = 3, 6, 5


def under(guest: ScriptedGuest, engine: str = "interp") -> LongMode:
    machine = LongMode(engine=engine)
    machine.core.guest = guest
    machine.core.memory.mode_changed()
    return machine


def left(machine: LongMode | Protected, steps: int = 1) -> None:
    """Step until the guest is left, by the last of the steps."""
    machine.step(steps - 1)
    with pytest.raises(Leave):
        machine.step()


@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_an_intercepted_bus_lock_exception_changes_no_debug_register(engine: str) -> None:
    guest = ScriptedGuest("exception 1")
    machine = under(guest, engine)
    machine.core.msrs.write(0x1D9, BLD | 1)
    machine.user(LOCK_INC + NOP, rcx=SPLIT, dr7=0x2400)
    with pytest.raises(Leave):
        machine.core.run()
    state = machine.state
    assert guest.asked[-1] == ("exception 1", None, 0x800, HARDWARE, 0)
    assert (state.rip, state.dr6, state.dr7, state.debugctl) == (USER + 3, 0xFFFF0FF0, 0x2400, 5)
    assert machine.observer.locks[0][1] is Outcome.DB


def test_causes_come_in_positive_polarity_together() -> None:
    guest = ScriptedGuest("exception 1")
    machine = under(guest)
    machine.core.msrs.write(0x1D9, BLD)
    registers = {"dr1": SPLIT, "dr7": 0x400 | 4 | 3 << 20, "system_flags": 2 | RFLAGS_TF}
    machine.user(LOCK_INC + NOP, rcx=SPLIT, **registers)
    machine.core.memory.breakpoints_changed()
    left(machine, 2)
    assert guest.asked[-1][2] & ~0x1000 == 0x4802


@pytest.mark.parametrize("engine", ["interp", "jit"])
@pytest.mark.parametrize(("debugctl", "pending"), [(BLD, 0x800), (0, 0)])
def test_a_bus_lock_exit_leaves_the_exception_pending(
    engine: str, debugctl: int, pending: int
) -> None:
    guest = ScriptedGuest("bus_lock", "exception 1")
    machine = under(guest, engine)
    machine.core.msrs.write(0x1D9, debugctl)
    machine.user(LOCK_INC + NOP + b"\xcc", rcx=SPLIT)
    with pytest.raises(Leave):
        machine.core.run()
    assert (machine.state.rip, machine.state.pending_debug) == (USER + 3, pending)
    assert guest.asked[-1] == ("bus_lock",)
    assert [outcome for _, outcome in machine.observer.locks] == [Outcome.VM_EXIT]
    guest.wanted.remove("bus_lock")
    guest.wanted.add("exception 3")
    with pytest.raises(Leave):
        machine.core.run()
    assert guest.asked[-1][0] == ("exception 1" if pending else "exception 3")


@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_a_bus_lock_exit_does_not_ask_for_the_cpl(engine: str) -> None:
    guest = ScriptedGuest("bus_lock")
    machine = under(guest, engine)
    machine.kernel(LOCK_INC + NOP, rcx=SPLIT)
    with pytest.raises(Leave):
        machine.core.run()
    assert machine.state.rip == KERNEL + 3


def test_a_page_fault_is_shown_before_cr2_is_written() -> None:
    guest = ScriptedGuest("exception 14")
    machine = under(guest).user(b"\x48\x8b\x01", rcx=0x700008, cr2=5)
    left(machine)
    assert guest.asked == [("exception 14", 4, 0x700008, HARDWARE, 0)]
    assert (machine.state.cr2, machine.state.rip) == (5, USER)
    assert machine.state.system_flags & RFLAGS_RF


@pytest.mark.parametrize(
    ("code", "question"),
    [
        (b"\xcc", ("exception 3", None, 0, SOFTWARE, 1)),
        (b"\xf1", ("exception 1", None, 0, PRIVILEGED, 1)),
    ],
)
def test_software_exceptions_tell_their_kind_and_length(
    code: bytes, question: tuple[object, ...]
) -> None:
    guest = ScriptedGuest(str(question[0]))
    machine = under(guest).user(code)
    left(machine)
    assert guest.asked == [question]
    assert machine.state.rip == USER


def test_int_n_is_nobodys_business() -> None:
    guest = ScriptedGuest("exception 128")
    machine = under(guest).user(b"\xcd\x80")
    machine.step()
    assert (machine.vector, guest.asked) == (0x80, [])


def test_a_fault_while_delivering_is_shown_with_what_was_delivered() -> None:
    guest = ScriptedGuest("exception 14")
    machine = under(guest)
    machine.state.gdtr_base = 0x7000_0000  # no descriptors there
    machine.user(b"\xf4")  # hlt: #GP(0)
    left(machine)
    assert [one[0] for one in guest.asked] == ["exception 13", "exception 14"]
    assert guest.vectoring_info == EVENT_VALID | EVENT_ERROR_CODE | HARDWARE << 8 | 13
    assert guest.vectoring_error_code == 0
    assert (machine.state.rip, machine.state.cpl) == (USER, 3)


def test_what_was_delivered_is_forgotten_when_it_is() -> None:
    guest = ScriptedGuest()
    machine = under(guest).user(b"\xf4")
    machine.step()
    assert (machine.vector, guest.vectoring_info) == (13, 0)


def test_double_and_triple_faults_are_asked_in_turn() -> None:
    guest = ScriptedGuest()
    machine = under(guest)
    machine.state.idtr_limit = 0
    machine.user(b"\xf4")
    left(machine)
    assert [one[0] for one in guest.asked] == [
        "exception 13", "exception 13", "exception 8", "exception 13", "triple fault",
    ]  # fmt: skip
    assert machine.state.activity == 0


@pytest.mark.parametrize(
    ("code", "registers", "question"),
    [
        (b"\x0f\xa2", {}, ("cpuid", 2, 0)),
        (b"\xf4", {}, ("hlt", 1, 0)),
        (b"\x0f\x31", {}, ("rdtsc", 2, 0)),
        (b"\x0f\x01\x39", {"rcx": DATA}, ("invlpg", 3, DATA)),
        (b"\x0f\x09", {}, ("wbinvd", 2, 0)),
        (b"\x0f\x32", {"rcx": 0x10}, ("msr", 0x10, False, 2)),
        (b"\x0f\x30", {"rcx": 0x99999}, ("msr", 0x99999, True, 2)),
        (b"\x0f\x23\xf8", {}, ("dr", 7, False, 0, 3)),
        (b"\x0f\x21\xf1", {}, ("dr", 6, True, 1, 3)),
        (b"\x0f\x22\xd8", {"rax": 0x5000}, ("write cr", 3, 0x5000, 0, 3)),
        (b"\x0f\x20\xe1", {}, ("read cr", 4, 1, 3)),
        (b"\x0f\x06", {}, ("cr0 part", 0, True, 2)),
        (b"\xe6\x80", {}, ("io", 0x80, 1, False, 2, 0x40, 0)),
        (b"\xec", {"rdx": 0x3F8}, ("io", 0x3F8, 1, True, 1, 0, 0)),
        (b"\xf3\x6f", {"rdx": 9, "rsi": DATA, "rcx": 4}, ("io", 9, 4, False, 2, 0x30, DATA)),
        (b"\x0f\x01\xd1", {}, ("xsetbv", 3, 0)),
    ],
)
def test_instructions_are_asked_about_before_they_do_anything(
    code: bytes, registers: dict[str, int], question: tuple[object, ...]
) -> None:
    guest = ScriptedGuest(str(question[0]))
    machine = under(guest).kernel(code, **registers)
    before = machine.state.snapshot()
    left(machine)
    assert guest.asked == [question]
    machine.state.tlb = machine.state.tlb_supervisor
    assert machine.state.snapshot() == before


@pytest.mark.parametrize(
    "code", [b"\xf4", b"\x0f\x32", b"\x0f\x23\xf8", b"\x0f\x22\xd8", b"\xe6\x80", b"\x0f\x09"]
)
def test_privilege_comes_before_the_hypervisor(code: bytes) -> None:
    guest = ScriptedGuest()
    machine = under(guest).user(code)
    machine.step()
    assert guest.asked == [("exception 13", 0, 0, HARDWARE, 0)]
    assert machine.vector == 13


def test_general_detect_comes_after_the_hypervisor() -> None:
    guest = ScriptedGuest("dr")
    left(under(guest).kernel(b"\x0f\x23\xf8", dr7=0x2400))
    guest = ScriptedGuest("exception 1")
    machine = under(guest).kernel(b"\x0f\x23\xf8", dr7=0x2400)
    left(machine)
    assert guest.asked == [("dr", 7, False, 0, 3), ("exception 1", None, 0x2000, HARDWARE, 0)]
    assert machine.state.dr7 == 0x2400


def test_control_registers_take_the_hypervisors_value() -> None:
    guest = ScriptedGuest()
    machine = under(guest)
    guest.control = {0: machine.state.cr0 | 1 << 1, 4: 0x123}
    machine.kernel(b"\x0f\x22\xc0" + b"\x0f\x20\xe1", rax=CR0_PE | CR0_PG).step(2)
    assert machine.state.cr0 & 1 << 1
    assert machine.state.rcx == 0x123


def test_time_stamps_have_the_guests_offset() -> None:
    guest = ScriptedGuest()
    machine = under(guest).user(b"\x0f\x31")
    guest.tsc_offset = 1 << 62
    machine.step()
    assert machine.state.rdx >> 30 == 1


def test_ports_are_checked_before_the_hypervisor_sees_them() -> None:
    guest = ScriptedGuest("io")
    machine = under(guest).user(b"\xe4\x80", system_flags=2 | RFLAGS_IOPL)
    left(machine)
    assert guest.asked == [("io", 0x80, 1, True, 2, 0x40, 0)]


def test_external_interrupts_are_shown_whatever_if_says() -> None:
    guest = ScriptedGuest("interrupt")
    machine = under(guest).kernel(NOP)
    machine.core.interrupt_lines.raise_interrupt(0x40)
    left(machine)
    assert machine.core.interrupt_lines.vector == 0x40  # not acknowledged
    machine = under(ScriptedGuest("nmi")).kernel(NOP)
    machine.core.interrupt_lines.raise_nmi()
    left(machine)


def test_the_boundary_is_asked_twice_around_the_traps() -> None:
    guest = ScriptedGuest()
    guest.watches = 1
    machine = under(guest).user(NOP * 2, system_flags=2 | RFLAGS_TF | RFLAGS_IF)
    machine.step(2)
    names = [one[:2] for one in guest.asked]
    assert names == [
        ("boundary", True), ("boundary", False),
        ("boundary", True), ("exception 1", None), ("boundary", False), ("hlt", 1),
    ]  # fmt: skip
    assert boundary.must_step(machine.core)


def test_task_switches_belong_to_the_hypervisor() -> None:
    machine, guest = Protected(), ScriptedGuest()
    machine.core.guest = guest
    machine.ring(0, b"\xea" + (0x8100).to_bytes(4, "little") + TASK_B.to_bytes(2, "little"))
    left(machine)
    assert guest.asked == [("task switch", TASK_B, 2, 7)]


def test_a_violation_while_pushing_a_frame_tells_the_event() -> None:
    guest = ScriptedGuest()
    machine = under(guest)
    ept = machine.tables
    root = ept.new()
    # One EPT for everything: a 2 MiB identity page, without writes to the stack's 2 MiB.
    table_3, table_2 = ept.new(), ept.new()
    machine.set_word(root, table_3 | 7)
    machine.set_word(table_3, table_2 | 7)
    for index in range(8):
        machine.set_word(table_2 + 8 * index, index << 21 | 7 | 6 << 3 | 0x80)
    machine.set_word(table_2 + 8 * 7, 7 << 21 | 5 | 6 << 3 | 0x80)
    machine.set_word(0x4000 + 4, 0xE0_0000 + 0x1000)  # RSP0, in the last 2 MiB
    machine.tables.map(0xE0_0000, 0xE0_0000, 3, level=2)
    guest.ept_pointer = root | 6 | 3 << 3
    machine.core.memory.mode_changed()
    machine.user(b"\xf4")
    left(machine)
    assert guest.asked[-1] == ("ept violation", 0xE0_1000 - 48, 2, 5, 0xE0_1000 - 48, False)
    assert guest.vectoring_info & 0xFF == 13
    assert machine.state.rip == USER


def test_faults_reach_the_guest_when_nobody_wants_them() -> None:
    machine = under(ScriptedGuest()).user(b"\x0f\x0b")
    machine.step()
    assert (machine.state.rip, machine.state.rsp) == (HANDLER + 16 * 6, STACK_TOP - 40)
    with pytest.raises(Fault):
        machine.core.msrs.read(0x12345)


def test_what_an_abandoned_instruction_met_is_forgotten() -> None:
    guest = ScriptedGuest("exception 14")
    machine = under(guest)
    # push [rcx], onto a stack that is not there: the read has met the breakpoint
    machine.user(b"\xff\x31" + NOP * 2, rcx=DATA, dr0=DATA, dr7=0x401 | 3 << 16, rsp=0x70_0000)
    machine.core.memory.breakpoints_changed()
    left(machine)
    machine.state.rip = USER + 2
    machine.step(2)
    assert [one[0] for one in guest.asked] == ["exception 14"]
    assert machine.state.rip == USER + 4
