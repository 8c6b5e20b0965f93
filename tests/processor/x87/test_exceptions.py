"""Unmasked exceptions: what is held back, what is pending, and who raises it; #NM."""

from __future__ import annotations

import pytest

from tests.processor.jit.flat import CODE, DATA
from tests.processor.x87.unit import (
    C1,
    DE,
    DENORMAL,
    ES,
    IE,
    INFINITY,
    LARGEST,
    MASKED,
    OE,
    PE,
    QUIET,
    SIGNALLING,
    TINIEST,
    UE,
    ZE,
    B,
    bits,
    done,
    run,
)

NM, MF = 7, 16
WAITING = [
    "9b", "d9d0", "d9e8", "d9c0", "d8c1", "dd07", "dd17", "db2f", "d92f", "d927", "dd27", "d9e5",
    "d9f7", "ddc0", "dac1", "dbf1", "d9fe",
]  # fmt: skip
NOT_WAITING = ["dfe0", "dd3f", "d93f", "d937", "dd37", "dbe2", "dbe3", "dbe0", "dbe1", "dbe4"]


@pytest.mark.parametrize("code", WAITING)
def test_a_waiting_instruction_raises_what_is_pending(engine: str, code: str) -> None:
    """And before it looks at its memory operand."""
    after = run(engine, code, [1.0, 1.0], fcw=0x37E, fsw=IE | ES | B, rdi=1 << 47)
    assert (after.vector, after.offset, after.fsw) == (MF, 0, IE | ES | B)


@pytest.mark.parametrize("code", NOT_WAITING)
def test_a_control_instruction_does_not_wait(engine: str, code: str) -> None:
    after = done(engine, code, [1.0, 1.0], fcw=0x37E, fsw=IE | ES | B)
    assert after.finished


@pytest.mark.parametrize("code", [*WAITING, *NOT_WAITING])
@pytest.mark.parametrize("cr0", [1 << 2, 1 << 3])
def test_switched_off_is_nm(engine: str, code: str, cr0: int) -> None:
    """CR0.EM or CR0.TS; WAIT wants MP and TS."""
    after = run(engine, code, [1.0, 1.0], bytes(108), cr0=0x13 | cr0)
    if code == "9b" and cr0 != 1 << 3:
        assert after.finished
    else:
        assert (after.vector, after.offset) == (NM, 0)


def test_wait_ignores_a_task_switch_without_mp(engine: str) -> None:
    assert run(engine, "9b", cr0=0x11 | 1 << 3).finished


def test_an_unmasked_exception_waits_for_the_next_instruction(engine: str) -> None:
    """1 / 0, some integer code, then FABS."""
    code = "d8f1" + "ffc0" * 3 + "d9e1"
    after = run(engine, code, [1.0, 0.0], fcw=MASKED & ~ZE)
    assert (after.vector, after.offset, after.rax) == (MF, 8, 3)
    assert (after.values, after.fsw) == ([1.0, 0.0], ZE | ES | B)
    assert (after.fip, after.fop) == (CODE, 0x0F1)


def test_the_data_pointer_is_that_of_the_last_memory_operand(engine: str) -> None:
    after = run(engine, "dc7710", [1.0], bytes(24), fcw=MASKED & ~ZE)
    assert (after.fdp, after.fip, after.fop, after.flags) == (DATA + 0x10, CODE, 0x477, ZE)
    after = done(engine, "dd47104048d9c0", [1.0], bytes(24))
    assert (after.fdp, after.fip, after.fop) == (DATA + 0x10, CODE + 3, 0x1C0)


@pytest.mark.parametrize("code, flag, left, right", [
    ("d8c1", IE, SIGNALLING, 1.0), ("d8c1", DE, DENORMAL, 1.0), ("d8f1", ZE, 1.0, 0.0),
    ("dec1", IE, SIGNALLING, 1.0), ("def9", DE, 1.0, DENORMAL), ("d9fa", IE, -1.0, 0.0),
    ("d9fd", IE, 0.0, INFINITY), ("d9f8", IE, 1.0, 0.0), ("d9fe", DE, DENORMAL, 0.0),
    ("d9f4", ZE, 0.0, 0.0), ("d9fb", IE, INFINITY, 0.0), ("ded9", IE, QUIET, 1.0),
    ("d9f1", ZE, 0.0, 1.0), ("d9f3", DE, DENORMAL, 1.0),
])  # fmt: skip
def test_an_exception_on_the_operands_leaves_them(
    engine: str, code: str, flag: int, left: float, right: float
) -> None:
    after = done(engine, code, [left, right], fcw=MASKED & ~flag)
    patterns = [given if isinstance(given, int) else bits(given) for given in (left, right)]
    assert [after.bits(0), after.bits(1)] == patterns
    assert after.fsw & 0xB8FF == flag | ES | B and after.ftw == 3


def test_a_result_out_of_range_comes_with_its_exponent_wrapped(engine: str) -> None:
    """SDM 1, "Numeric Overflow Exception (#O)": 24,576 less, for underflow more."""
    after = done(engine, "dec1", [LARGEST, LARGEST], fcw=MASKED & ~OE)
    assert after.bits(0) == LARGEST + (1 << 64) - (24576 << 64)
    assert (after.flags, after.top) == (OE, 1)
    after = done(engine, "d8c9", [TINIEST, 0.5], fcw=MASKED & ~UE)
    assert after.bits(0) == TINIEST - (1 << 64) + (24576 << 64) and after.flags == UE


@pytest.mark.parametrize(
    "code, flag, given",
    [
        ("dd1f", OE, LARGEST), ("dd1f", UE, TINIEST), ("d91f", IE, SIGNALLING), ("df1f", IE, 1e30),
        ("db1f", IE, QUIET), ("df3f", IE, 1e30), ("dd0f", IE, 1e30), ("df37", IE, 1e30),
    ],
)  # fmt: skip
def test_a_store_that_is_held_back_pops_nothing(
    engine: str, code: str, flag: int, given: float
) -> None:
    before = bytes(range(1, 11))
    after = done(engine, code, [given], before, fcw=MASKED & ~flag)
    assert (after.memory(10), after.top, after.ftw) == (before, 0, 1)
    assert (after.flags, after.fsw & ES) == (flag, ES)


@pytest.mark.parametrize("code", ["dd1f", "df37", "db3f"])
def test_a_store_that_is_held_back_may_fault_all_the_same(engine: str, code: str) -> None:
    """The fault of the access wins: nothing of the other exception is left."""
    after = run(engine, code, fcw=0x37E, rdi=1 << 47)
    assert (after.vector, after.fsw) == (13, 0)


def test_a_precision_exception_keeps_nothing_back(engine: str) -> None:
    after = done(engine, "d8f1", [1.0, 3.0], fcw=MASKED & ~PE)
    assert after.flags == PE and after.fsw & ES and after.values[0] == pytest.approx(1 / 3)


def test_a_load_pushes_a_denormal_even_if_that_is_unmasked(engine: str) -> None:
    after = done(engine, "dd07", memory=(1).to_bytes(8, "little"), fcw=MASKED & ~DE)
    assert (after.values, after.flags, after.fsw & ES) == ([2.0**-1074], DE, ES)


def test_fldcw_unmasks_what_is_already_raised(engine: str) -> None:
    after = run(engine, "d92f90d9d0", memory=b"\x7b\x03", fsw=ZE | PE)
    assert (after.vector, after.offset, after.fsw) == (MF, 3, ZE | PE | ES | B)


def test_fldcw_masks_what_is_pending(engine: str) -> None:
    """FNSTCW and FNSTENV do not wait; the handler's way out is FNCLEX or FNSTENV."""
    after = done(engine, "d937" + "d9d0", fcw=0x37B, fsw=ZE | ES | B)
    assert (after.fcw, after.fsw) == (MASKED, ZE)
    after = done(engine, "dbe2" + "d9d0", fcw=0x37B, fsw=ZE | ES | B | C1)
    assert after.fsw == C1


def test_the_other_flags_are_not_those_of_an_operation_that_stopped(engine: str) -> None:
    """DE is unmasked, so nobody finds out that the sum is inexact."""
    after = done(engine, "d8c1", [DENORMAL, 1.0], fcw=MASKED & ~DE)
    assert after.flags == DE
    after = done(engine, "d8c1", [DENORMAL, 1.0])
    assert after.flags == DE | PE
