"""The bus lock debug exception on the bare processor, on both engines.

The worked table of DR6 values (reference A.6), when it is taken, and what it is merged with.
"""

from __future__ import annotations

import pytest

from tests.processor.long_mode import DATA, KERNEL, USER, USER_SS, LongMode
from trapline.arch.msr import IA32_DEBUGCTL, TEST_CTRL
from trapline.arch.paging import PTE_P, PTE_PCD, PTE_U, PTE_W
from trapline.arch.registers import RFLAGS_TF
from trapline.processor.buslock import Cause, Outcome

LOCK_INC = b"\xf0\xff\x01"  # lock inc dword [rcx]
NOP = b"\x90"
SPLIT, WHOLE = DATA + 0x3E, DATA + 0x3C
DB, AC, PF = 1, 17, 14
BLD, BTF, LBR = 4, 2, 1


@pytest.fixture(params=["interp", "jit"])
def machine(request: pytest.FixtureRequest) -> LongMode:
    return LongMode(engine=request.param)


def run_locked(machine: LongMode, debugctl: int = BLD, **registers: int) -> LongMode:
    """LOCK INC of a split operand and a NOP, up to the handler's HLT, or past both."""
    machine.core.msrs.write(IA32_DEBUGCTL, debugctl)
    machine.core.memory.breakpoints_changed()
    machine.user(LOCK_INC + NOP + b"\x0f\x0b", **({"rcx": SPLIT} | registers))
    machine.core.memory.breakpoints_changed()
    machine.core.run()
    return machine


def handled(machine: LongMode) -> tuple[int | None, int, int]:
    """Vector, saved RIP as an offset, DR6."""
    machine.state.rip -= 1  # the handler's HLT is over
    return machine.vector, machine.frame().rip - USER, machine.state.dr6


def test_bus_lock_alone(machine: LongMode) -> None:
    run_locked(machine)
    assert handled(machine) == (DB, 3, 0xFFFF07F0)
    assert machine.word(0x4003E + 0x2000, 4) == 1  # the instruction has completed
    assert machine.core.msrs.read(IA32_DEBUGCTL) == BLD  # and BLD stays


def test_bus_lock_and_single_step(machine: LongMode) -> None:
    run_locked(machine, system_flags=2 | RFLAGS_TF)
    assert handled(machine) == (DB, 3, 0xFFFF47F0)
    assert machine.frame().rflags & RFLAGS_TF


def test_bus_lock_and_data_breakpoint(machine: LongMode) -> None:
    run_locked(machine, dr1=DATA + 0x40, dr7=0x400 | 1 << 2 | 1 << 20)
    assert handled(machine) == (DB, 3, 0xFFFF07F2)


def test_bus_lock_single_step_and_two_breakpoints(machine: LongMode) -> None:
    enabled = 0x400 | 1 | 1 << 6 | 3 << 16 | 1 << 28
    run_locked(machine, dr0=SPLIT, dr3=DATA + 0x41, dr7=enabled, system_flags=2 | RFLAGS_TF)
    assert handled(machine) == (DB, 3, 0xFFFF47F9)


def test_other_debug_exceptions_leave_bit_11_as_it_was(machine: LongMode) -> None:
    run_locked(machine, rcx=WHOLE, dr6=0xFFFF07F0, system_flags=2 | RFLAGS_TF)
    assert handled(machine) == (DB, 3, 0xFFFF47F0)


def test_without_bld_nothing_is_signalled(machine: LongMode) -> None:
    run_locked(machine, debugctl=0)
    assert handled(machine)[:2] == (6, 4)  # the UD2 after the NOP
    assert machine.state.dr6 == 0xFFFF0FF0
    machine.core.hand_over_bus_locks()
    outcomes = [outcome for _, outcome in machine.observer.locks]
    assert len(outcomes) + sum(total[-1] for total in machine.observer.totals) == 1
    assert set(outcomes) <= {Outcome.NONE}


def test_at_cpl_0_nothing_is_signalled(machine: LongMode) -> None:
    machine.core.msrs.write(IA32_DEBUGCTL, BLD)
    machine.kernel(LOCK_INC + b"\xf4", rcx=0x3003E).core.run()
    assert machine.state.rip == KERNEL + 4
    machine.core.hand_over_bus_locks()
    locks, totals = machine.observer.locks, machine.observer.totals
    assert [(lock.cpl, outcome) for lock, outcome in locks] in ([(0, Outcome.NONE)], [])
    assert len(locks) + sum(total[-1] for total in totals) == 1


def test_the_observer_hears_what_was_signalled_and_where(machine: LongMode) -> None:
    run_locked(machine)
    [(lock, outcome)] = machine.observer.locks
    assert (lock.rip, lock.next_rip, lock.linear, lock.size) == (USER, USER + 3, SPLIT, 4)
    assert (lock.physical, lock.cpl, lock.cause) == (0x4203E, 3, Cause.SPLIT)
    assert outcome is Outcome.DB


def test_memory_that_is_not_write_back_locks_the_bus(machine: LongMode) -> None:
    machine.tables.map(DATA, 0x42000, PTE_P | PTE_W | PTE_U | PTE_PCD)
    run_locked(machine, rcx=WHOLE)
    assert handled(machine) == (DB, 3, 0xFFFF07F0)
    assert machine.observer.locks[0][0].cause is Cause.UNCACHED


def test_every_bus_lock_traps_again(machine: LongMode) -> None:
    machine.bus.bytes[0x9010:0x9012] = b"\x48\xcf"  # the handler: iretq
    machine.core.msrs.write(IA32_DEBUGCTL, BLD)
    machine.user(LOCK_INC * 5 + b"\x0f\x0b", rcx=SPLIT).core.run()
    assert handled(machine)[:2] == (6, 15)
    assert [outcome for _, outcome in machine.observer.locks] == [Outcome.DB] * 5
    assert [lock.rip - USER for lock, _ in machine.observer.locks] == [0, 3, 6, 9, 12]


def test_split_lock_ac_comes_first_and_prevents_the_bus_lock(machine: LongMode) -> None:
    machine.core.msrs.write(TEST_CTRL, 1 << 29)
    run_locked(machine)
    machine.state.rip -= 1
    frame = machine.frame(has_error_code=True)
    assert (machine.vector, frame.error_code, frame.rip) == (AC, 0, USER)
    assert machine.state.dr6 == 0xFFFF0FF0
    assert machine.word(0x4203E, 4) == 0
    assert [outcome for _, outcome in machine.observer.locks] == [Outcome.AC]


def test_with_split_lock_ac_off_again_the_same_instruction_traps(machine: LongMode) -> None:
    machine.core.msrs.write(TEST_CTRL, 1 << 29)
    run_locked(machine)
    machine.core.msrs.write(TEST_CTRL, 0)
    machine.state.activity = 0
    run_locked(machine)
    assert handled(machine) == (DB, 3, 0xFFFF07F0)


def test_a_faulting_locked_access_takes_no_bus_lock(machine: LongMode) -> None:
    at = USER + 0x5FFE  # the next page is not mapped
    run_locked(machine, rcx=at)
    machine.state.rip -= 1
    assert (machine.vector, machine.state.cr2) == (PF, USER + 0x6000)
    assert machine.observer.locks == []
    assert machine.state.dr6 == 0xFFFF0FF0


def test_a_failed_compare_locks_the_bus_too(machine: LongMode) -> None:
    machine.core.msrs.write(IA32_DEBUGCTL, BLD)
    # lock cmpxchg [rcx], edx
    machine.user(b"\xf0\x0f\xb1\x11", rcx=SPLIT, rax=5, rdx=7).core.run()
    assert handled(machine) == (DB, 4, 0xFFFF07F0)
    assert machine.state.rax == 0


def test_mov_ss_holds_what_it_hit_for_the_next_boundary() -> None:
    machine = LongMode()
    machine.core.msrs.write(IA32_DEBUGCTL, BLD)
    # mov ss, [rdx]; lock inc dword [rcx]
    machine.user(b"\x8e\x12" + LOCK_INC, rcx=SPLIT, rdx=DATA, dr0=DATA)
    machine.set_word(0x42000, USER_SS)
    machine.state.dr7 = 0x400 | 1 | 3 << 16
    machine.core.memory.breakpoints_changed()
    machine.step()
    assert (machine.vector, machine.state.rip) == (None, USER + 2)
    machine.core.run()
    assert handled(machine) == (DB, 5, 0xFFFF07F1)


@pytest.mark.parametrize("model", ["legacy", "icelake", "zen4"])
def test_processors_without_the_feature_refuse_bld(model: str) -> None:
    machine = LongMode(model)
    machine.user(b"\x0f\x0b")
    with pytest.raises(Exception) as caught:
        machine.core.msrs.write(IA32_DEBUGCTL, BLD)
    assert caught.value.vector == 13  # type: ignore[attr-defined]


def test_zen5_has_it_as_well() -> None:
    machine = LongMode("zen5")
    run_locked(machine)
    assert handled(machine) == (DB, 3, 0xFFFF07F0)


def test_lbr_and_btf_are_cleared_by_a_debug_exception(machine: LongMode) -> None:
    run_locked(machine, debugctl=BLD | BTF | LBR)
    assert handled(machine) == (DB, 3, 0xFFFF07F0)
    assert machine.core.msrs.read(IA32_DEBUGCTL) == BLD
