"""The register stack: TOP, tags, overflow and underflow (SDM 1, "Stack Overflow or Underflow
Exception")."""

from __future__ import annotations

import pytest

from tests.processor.x87.unit import (
    C0,
    C1,
    C2,
    C3,
    EMPTY,
    ES,
    IE,
    INDEFINITE,
    SF,
    B,
    bits,
    done,
)

FLD1, FLDZ, FLDPI = "d9e8", "d9ee", "d9eb"


def test_a_push_goes_down_and_a_pop_comes_up(engine: str) -> None:
    after = done(engine, FLD1 + FLDZ)
    assert (after.top, after.ftw, after.values) == (6, 0b1100_0000, [0.0, 1.0])
    after = done(engine, FLD1 + FLDZ + "ddd8")  # fstp st(0)
    assert (after.top, after.ftw, after.values) == (7, 0b1000_0000, [1.0])


def test_the_ninth_push_overflows(engine: str) -> None:
    after = done(engine, FLD1 * 8)
    assert (after.top, after.ftw, after.fsw) == (0, 0xFF, 0)
    after = done(engine, FLD1 * 9)
    assert (after.top, after.ftw, after.bits(0)) == (7, 0xFF, INDEFINITE)
    assert after.fsw & 0x7FF == IE | SF | C1


@pytest.mark.parametrize(
    "code", ["d907", "dd07", "db2f", "df07", "db07", "df2f", "df27", "d9c0", "d9e8", FLDPI]
)
def test_every_load_may_overflow(engine: str, code: str) -> None:
    after = done(engine, code, [1.0] * 8, bytes(10))
    assert (after.top, after.bits(0), after.flags) == (7, INDEFINITE, IE | SF)
    assert after.fsw & C1


@pytest.mark.parametrize(
    "code, pops",
    [
        ("ddd8", 1), ("ddd1", 0), ("d917", 0), ("dd1f", 1), ("db3f", 1), ("df17", 0), ("db1f", 1),
        ("df3f", 1), ("dd0f", 1), ("df37", 1), ("d9e0", 0), ("d9e1", 0), ("d9fa", 0), ("d9fc", 0),
        ("d8c1", 0), ("dec1", 1), ("dc07", 0), ("de07", 0), ("d9fd", 0), ("d9f8", 0), ("d9f3", 1),
        ("d8d1", 0), ("ded9", 2), ("dbf1", 0), ("dfe9", 1), ("d9e4", 0), ("dac1", 0), ("d9c9", 0),
        ("d9fe", 0), ("d9f0", 0), ("d9f1", 1),
    ],
)  # fmt: skip
def test_reading_an_empty_register_underflows(engine: str, code: str, pops: int) -> None:
    after = done(engine, code, memory=bytes(10), fsw=C1)
    assert (after.flags, after.fsw & C1, after.top) == (IE | SF, 0, pops)


@pytest.mark.parametrize("code", ["d9fb", "d9f2", "d9f4"])
def test_a_second_result_overflows_and_spoils_both(engine: str, code: str) -> None:
    after = done(engine, code, [0.5] * 8)
    assert (after.top, after.bits(0), after.bits(1)) == (7, INDEFINITE, INDEFINITE)
    assert after.fsw & (SF | C1) == SF | C1


def test_an_underflow_comes_before_an_overflow(engine: str) -> None:
    after = done(engine, "d9c0", [EMPTY] + [1.0] * 7)  # fld st(0)
    assert (after.top, after.fsw & C1, after.bits(0)) == (7, 0, INDEFINITE)


@pytest.mark.parametrize(
    "code, stack",
    [
        ("d9e8", [1.0] * 8), ("dd07", [1.0] * 8), ("ddd9", [EMPTY, 2.0]), ("dec1", [1.0]),
        ("d9c9", [EMPTY, 2.0]), ("dac1", [1.0]), ("ded9", [1.0]), ("d9fb", [1.0] * 8),
        ("dd1f", [EMPTY]), ("df37", [EMPTY]),
    ],
)  # fmt: skip
def test_an_unmasked_stack_fault_changes_only_the_status(
    engine: str, code: str, stack: list[float | None]
) -> None:
    memory = bytes(range(1, 11))
    after = done(engine, code, stack, memory, fcw=0x37E)
    assert after.flags == IE | SF and after.fsw & (ES | B) == ES | B
    assert after.top == 0 and after.memory(10) == memory
    assert after.values == (stack if stack[0] is not EMPTY or len(stack) > 1 else [])


def test_empty_registers_are_exchanged_as_the_indefinite(engine: str) -> None:
    after = done(engine, "d9c9", [EMPTY, 2.0])
    assert (after.bits(0), after.bits(1), after.ftw) == (bits(2.0), INDEFINITE, 0b11)


@pytest.mark.parametrize("taken", [False, True])
def test_a_conditional_move_underflows_whatever_the_condition(engine: str, taken: bool) -> None:
    after = done(engine, "dac1", [1.0], rflags=0x2 | taken)  # fcmovb st, st(1)
    assert (after.bits(0), after.flags) == (INDEFINITE, IE | SF)


@pytest.mark.parametrize("code, holds", [
    ("dac1", 0x001), ("dac9", 0x040), ("dad1", 0x041), ("dad9", 0x004),
])  # fmt: skip
def test_conditional_moves_read_the_flags(engine: str, code: str, holds: int) -> None:
    """FCMOVB, FCMOVE, FCMOVBE, FCMOVU and, two rows of opcodes further on, their opposites."""
    opposite = "db" + code[2:]
    for flags in (0, 0x001, 0x040, 0x004, 0x8D5):
        expected = 2.0 if flags & holds else 1.0
        assert done(engine, code, [1.0, 2.0], rflags=2 | flags).values == [expected, 2.0]
        assert done(engine, opposite, [1.0, 2.0], rflags=2 | flags).values == [3.0 - expected, 2.0]


def test_the_top_turns_without_tags(engine: str) -> None:
    after = done(engine, "d9f7", [1.0], fsw=C1)  # fincstp
    assert (after.top, after.ftw, after.fsw & C1) == (1, 1, 0)
    after = done(engine, "d9f6", [1.0])  # fdecstp
    assert (after.top, after.ftw) == (7, 1)


def test_registers_are_freed(engine: str) -> None:
    after = done(engine, "ddc1", [1.0, 2.0, 3.0])  # ffree st(1)
    assert after.stack[:3] == [1.0, None, 3.0]
    after = done(engine, "dfc1", [1.0, 2.0, 3.0])  # ffreep st(1)
    assert after.stack[:2] == [None, 3.0] and after.top == 1


def test_a_store_to_a_register_makes_it_used(engine: str) -> None:
    after = done(engine, "ddd2", [1.0])  # fst st(2)
    assert after.stack[:3] == [1.0, None, 1.0]


def test_fxam_answers_for_an_empty_register(engine: str) -> None:
    after = done(engine, "d9e5", [EMPTY], fsw=C2)
    assert after.fsw & (C0 | C2 | C3) == C0 | C3 and after.flags == 0
