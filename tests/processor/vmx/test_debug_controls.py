"""DEBUGCTL, DR6 and DR7 of a VMX guest: what an exit saves, leaves alone, or has changed before."""

from __future__ import annotations

import pytest

from tests.processor.vmx.machine import CODE, HLT, LOCK_XADD, SPIN, SPLIT, Machine
from trapline.arch import vmx
from trapline.arch.msr import DEBUGCTL_BLD, DEBUGCTL_BTF, DEBUGCTL_LBR
from trapline.arch.registers import RFLAGS_TF
from trapline.arch.vmx import ExitReason

NOWHERE = 0x800000  # no page is there
BS, BUS_LOCK, GD = 1 << 14, 1 << 11, 1 << 13


def locking(engine: str, **fields: int) -> Machine:
    """CPL 3, about to lock the bus, with BLD."""
    machine = Machine(LOCK_XADD + SPIN, 3, engine)
    machine.write(**{"guest_ia32_debugctl": DEBUGCTL_BLD, **fields})
    machine.state.rdi, machine.state.rax = SPLIT, 1
    return machine


def test_an_exit_in_the_middle_of_delivering_it_finds_everything_changed(engine: str) -> None:
    """SDM 3C, "Architectural State Before a VM Exit": the #DB itself was not intercepted, the
    page fault of its IDT entry is.  DR6 is written, GD, LBR and BTF are clear, BLD stays."""
    machine = locking(
        engine,
        exception_bitmap=1 << 14,
        guest_idtr_base=NOWHERE,
        guest_dr7=0x400 | GD,
        guest_ia32_debugctl=DEBUGCTL_BLD | DEBUGCTL_LBR | DEBUGCTL_BTF,
    )
    exit = machine.enter()
    assert exit.interruption_info & 0xFF == 14
    assert exit.vectoring_info == 0x80000301
    assert machine.state.dr6 == 0xFFFF07F0
    assert machine.read("guest_dr7") == 0x400
    assert machine.read("guest_ia32_debugctl") == DEBUGCTL_BLD
    assert machine.read("guest_rip") == CODE + len(LOCK_XADD)


def test_a_direct_exit_changes_nothing(engine: str) -> None:
    """SDM 3C, same place: DR6, DR7.GD and DEBUGCTL are for the hypervisor to change."""
    debugctl = DEBUGCTL_BLD | DEBUGCTL_LBR
    machine = locking(
        engine, exception_bitmap=1 << 1, guest_dr7=0x400 | GD, guest_ia32_debugctl=debugctl
    )
    exit = machine.enter()
    assert (exit.interruption_info, exit.qualification) == (0x80000301, BUS_LOCK)
    assert machine.state.dr6 == 0xFFFF0FF0
    assert machine.read("guest_dr7") == 0x400 | GD
    assert machine.read("guest_ia32_debugctl") == debugctl


def test_the_monitor_trap_leaves_debug_exceptions_pending(engine: str) -> None:
    """SDM 3C, "Saving Non-Register State": MTF comes before the traps of the instruction, and
    they are taken after the next entry."""
    machine = locking(engine, exception_bitmap=1 << 1, guest_rflags=2 | RFLAGS_TF)
    machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_MONITOR_TRAP_FLAG)
    assert machine.enter().reason == ExitReason.MONITOR_TRAP_FLAG
    assert machine.read("guest_pending_dbg_exceptions") == BUS_LOCK | BS
    machine.clear_bits("cpu_based_vm_exec_control", vmx.PROC_MONITOR_TRAP_FLAG)
    exit = machine.enter()
    assert (exit.interruption_info, exit.qualification) == (0x80000301, BUS_LOCK | BS)
    assert machine.read("guest_rip") == CODE + len(LOCK_XADD)
    assert machine.read("guest_pending_dbg_exceptions") == 0


@pytest.mark.parametrize("saves", [False, True])
def test_exits_save_the_debug_controls_if_asked(engine: str, saves: bool) -> None:
    """SDM 3C, "Saving Control Registers, Debug Registers, and MSRs"."""
    machine = Machine(b"\x0f\x23\xf8" + HLT, 0, engine)  # mov dr7, rax
    machine.write(guest_dr7=0x401, guest_ia32_debugctl=DEBUGCTL_BLD)
    change = machine.set_bits if saves else machine.clear_bits
    change("vm_exit_controls", vmx.EXIT_SAVE_DEBUG_CONTROLS)
    machine.state.rax = 0x455
    assert machine.enter().reason == ExitReason.HLT
    assert machine.read("guest_dr7") == (0x455 if saves else 0x401)
    assert machine.read("guest_ia32_debugctl") == DEBUGCTL_BLD


def test_a_stale_dr6_does_not_reach_the_qualification(engine: str) -> None:
    """It lists the causes of this #DB alone."""
    machine = locking(engine, exception_bitmap=1 << 1)
    machine.state.dr6 = 0xFFFFEFFF & ~BUS_LOCK
    assert machine.enter().qualification == BUS_LOCK
