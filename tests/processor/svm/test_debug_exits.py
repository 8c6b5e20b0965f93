"""Debug exceptions of an SVM guest: what the save area holds, and who is told of a bus lock."""

from __future__ import annotations

import pytest

from tests.processor.svm.machine import CODE, DATA, HLT, LOCK_XADD, SPIN, SPLIT, Machine
from trapline.arch import svm
from trapline.arch.registers import RFLAGS_TF
from trapline.arch.svm import EventType, ExitCode, Intercept

DB_EXIT = ExitCode.EXCP_BASE + 1
INTERCEPT_DB = svm.INTERCEPT_EXCEPTION + 1
BLD, LBR, BTF = 4, 1, 2
REPORT_DR6 = b"\x0f\x21\xf0" + HLT  # mov rax, dr6; hlt


def debug_guest(engine: str, code: bytes, cpl: int = 3, **fields: int) -> Machine:
    """#DB is intercepted, and BLD is set in a DEBUGCTL of the guest's own."""
    machine = Machine(code, cpl, engine)
    machine.intercept(INTERCEPT_DB)
    machine.write(**{"virt_ext": svm.VIRT_EXT_LBR, "dbgctl": BLD, **fields})
    machine.state.rdi = SPLIT
    machine.write(rax=1)
    return machine


def test_the_saved_dr6_holds_the_bus_lock_already(engine: str) -> None:
    """APM 2, 15.12.2, where VMX leaves DR6 to the hypervisor."""
    machine = debug_guest(engine, LOCK_XADD + SPIN)
    exit = machine.enter()
    assert exit.code == DB_EXIT
    assert machine.read("dr6") == 0xFFFF07F0
    assert machine.read("rip") == CODE + len(LOCK_XADD)
    assert machine.quad(SPLIT) & 0xFFFFFFFF == 1
    assert machine.read("dbgctl") == BLD


def test_causes_of_one_instruction_come_together(engine: str) -> None:
    machine = debug_guest(
        engine, LOCK_XADD + SPIN, rflags=2 | RFLAGS_TF, dr7=0x400 | 1 << 2 | 0xD << 20
    )
    machine.state.dr1 = DATA + 0x40
    machine.enter()
    assert machine.read("dr6") == 0xFFFF47F2


def test_a_cleared_bit_11_stays_as_software_left_it(engine: str) -> None:
    machine = debug_guest(engine, b"\x90" + SPIN, rflags=2 | RFLAGS_TF, dr6=0xFFFF07F1)
    machine.enter()
    assert machine.read("dr6") == 0xFFFF47F0


def test_general_detect_is_a_fault_and_gd_is_clear_already(engine: str) -> None:
    machine = debug_guest(engine, b"\x0f\x21\xc0" + HLT, cpl=0, dr7=0x400 | 1 << 13)
    assert machine.enter().code == DB_EXIT
    assert machine.read("rip") == CODE
    assert (machine.read("dr6"), machine.read("dr7")) == (0xFFFF2FF0, 0x400)


def test_icebp_is_not_the_debug_intercepts_business(engine: str) -> None:
    """INT1 goes to the guest's handler with DR6 as it was, unless its own intercept is set."""
    machine = debug_guest(engine, b"\xf1" + SPIN, cpl=0, dr6=0xFFFF0FF5)
    machine.handle(1, REPORT_DR6)
    assert machine.enter().code == ExitCode.HLT
    assert machine.state.rax == 0xFFFF0FF5
    machine = debug_guest(engine, b"\xf1" + SPIN, cpl=0)
    machine.intercept(Intercept.ICEBP)
    exit = machine.enter()
    assert (exit.code, exit.next_rip) == (ExitCode.ICEBP, CODE + 1)
    assert machine.read("rip") == CODE


def test_an_exception_that_is_not_intercepted_is_the_guests(engine: str) -> None:
    machine = debug_guest(engine, LOCK_XADD + SPIN)
    machine.vmcb.intercept(INTERCEPT_DB, False)
    machine.handle(1, REPORT_DR6)
    assert machine.enter().code == ExitCode.HLT
    assert machine.state.rax == 0xFFFF07F0


def test_an_injected_debug_exception_leaves_dr6_alone(engine: str) -> None:
    machine = debug_guest(engine, SPIN, dr6=0xFFFF4FF0)
    machine.vmcb.event_inj = svm.event(1, EventType.EXCEPTION)
    machine.handle(1, REPORT_DR6)
    assert machine.enter().code == ExitCode.HLT
    assert machine.state.rax == 0xFFFF4FF0
    assert machine.vmcb.event_inj == 0


def test_without_lbr_virtualization_the_guest_runs_with_the_hosts_debugctl(engine: str) -> None:
    machine = debug_guest(engine, LOCK_XADD + b"\x0f\x0b")
    machine.write(virt_ext=0)
    machine.intercept(svm.INTERCEPT_EXCEPTION + 6)
    assert machine.enter().code == ExitCode.EXCP_BASE + 6
    assert machine.read("dr6") == 0xFFFF0FF0
    assert machine.read("dbgctl") == BLD  # and the field is not touched


def test_reserved_bits_of_debugctl_are_ignored(engine: str) -> None:
    machine = debug_guest(engine, LOCK_XADD + SPIN, dbgctl=BLD | 1 << 5 | 1 << 40)
    assert machine.enter().code == DB_EXIT
    assert machine.read("dbgctl") == BLD


def test_tf_at_vmrun_traps_after_the_first_instruction(engine: str) -> None:
    machine = debug_guest(engine, b"\x90\x90" + SPIN, rflags=2 | RFLAGS_TF)
    assert machine.enter().code == DB_EXIT
    assert machine.read("rip") == CODE + 1
    assert machine.read("dr6") == 0xFFFF4FF0


def test_a_debug_exception_clears_lbr_and_btf_but_not_bld(engine: str) -> None:
    machine = debug_guest(engine, LOCK_XADD + SPIN, dbgctl=BLD | LBR | BTF)
    machine.enter()
    assert machine.read("dbgctl") == BLD


# -- the bus lock threshold ------------------------------------------------------------------------


def threshold_guest(engine: str, code: bytes, counter: int, cpl: int = 0) -> Machine:
    machine = Machine(code, cpl, engine)
    machine.intercept(Intercept.BUS_LOCK)
    machine.write(bus_lock_counter=counter)
    machine.state.rdi = SPLIT
    machine.write(rax=1)
    return machine


@pytest.mark.parametrize("cpl", [0, 3])
def test_at_zero_the_lock_is_not_done(engine: str, cpl: int) -> None:
    machine = threshold_guest(engine, LOCK_XADD + HLT, 0, cpl)
    exit = machine.enter()
    assert (exit.code, exit.info_1, exit.info_2) == (ExitCode.BUS_LOCK, 0, 0)
    assert machine.read("rip") == CODE
    assert machine.quad(SPLIT) == 0
    assert machine.read("rax") == 1
    # Nothing has changed, so nothing does.
    assert machine.enter().code == ExitCode.BUS_LOCK


def test_the_counter_goes_down_with_every_bus_lock(engine: str) -> None:
    machine = threshold_guest(engine, b"\xf0\xff\x07\xeb\xfb", 5)  # lock inc dword [rdi]; jmp
    assert machine.enter().code == ExitCode.BUS_LOCK
    assert machine.quad(SPLIT) & 0xFFFFFFFF == 5
    assert machine.read("bus_lock_counter") == 0
    assert machine.read("rip") == CODE
    machine.write(bus_lock_counter=2)
    assert machine.enter().code == ExitCode.BUS_LOCK
    assert machine.quad(SPLIT) & 0xFFFFFFFF == 7


def test_cache_locks_do_not_count(engine: str) -> None:
    machine = threshold_guest(engine, LOCK_XADD + HLT, 3)
    machine.state.rdi = DATA + 0x3C
    assert machine.enter().code == ExitCode.HLT
    assert machine.read("bus_lock_counter") == 3


def test_without_the_intercept_the_counter_means_nothing(engine: str) -> None:
    machine = threshold_guest(engine, LOCK_XADD + HLT, 0)
    machine.vmcb.intercept(Intercept.BUS_LOCK, False)
    assert machine.enter().code == ExitCode.HLT
    assert machine.quad(SPLIT) & 0xFFFFFFFF == 1


def test_a_lock_that_passed_the_threshold_still_traps(engine: str) -> None:
    machine = threshold_guest(engine, LOCK_XADD + SPIN, 1, cpl=3)
    machine.intercept(INTERCEPT_DB)
    machine.write(virt_ext=svm.VIRT_EXT_LBR, dbgctl=BLD)
    assert machine.enter().code == DB_EXIT
    assert machine.read("dr6") == 0xFFFF07F0
    assert machine.read("bus_lock_counter") == 0
