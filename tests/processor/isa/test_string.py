"""String instructions: direction, counts, segments, and stopping in the middle."""

from __future__ import annotations

import pytest

from tests.processor.isa.conftest import Run
from tests.processor.isa.machine import SIZE

DF = 1 << 10
ALL = (1 << 64) - 1
TEXT = b"bus lock"


def test_movs_moves_one_element_without_a_prefix(run: Run) -> None:
    after = run("movsd [rdi], [rsi]", "a5", rsi=0x8000, rdi=0x9000, rcx=9, memory={0x8000: TEXT})
    assert after.word(0x9000) == int.from_bytes(TEXT[:4], "little")
    assert (after.rsi, after.rdi, after.rcx) == (0x8004, 0x9004, 9)


def test_rep_movs_moves_them_all(run: Run) -> None:
    after = run("rep movsb [rdi], [rsi]", "f3 a4", rsi=0x8000, rdi=0x9001, rcx=8,
                memory={0x8000: TEXT})  # fmt: skip
    assert after.word(0x9001) == int.from_bytes(TEXT, "little")
    assert (after.rsi, after.rdi, after.rcx, after.moved) == (0x8008, 0x9009, 0, 2)


def test_the_direction_flag_turns_it_round(run: Run) -> None:
    after = run("rep movsw [rdi], [rsi]", "f3 66 a5", rsi=0x8006, rdi=0x9006, rcx=4, system=DF,
                memory={0x8000: TEXT})  # fmt: skip
    assert after.word(0x9000) == int.from_bytes(TEXT, "little")
    assert (after.rsi, after.rdi) == (0x7FFE, 0x8FFE)


def test_an_overlapping_move_repeats_its_pattern(run: Run) -> None:
    after = run("rep movsb [rdi], [rsi]", "f3 a4", rsi=0x8000, rdi=0x8002, rcx=6,
                memory={0x8000: b"ab"})  # fmt: skip
    assert after.word(0x8000) == int.from_bytes(b"abababab", "little")


def test_a_count_of_zero_does_nothing(run: Run) -> None:
    after = run("repe cmpsb [rsi], [rdi]", "f3 a6", rsi=ALL, rdi=ALL, flags="cf of")
    assert (after.flags, after.rsi, after.accesses, after.moved) == ({"cf", "of"}, ALL, [], 2)


def test_a_long_repetition_comes_to_its_end(run: Run) -> None:
    """Longer than the reference engine goes without looking at the boundary."""
    after = run("rep stosb [rdi]", "f3 aa", rdi=0x8000, rcx=10000, rax=0x55)
    assert (after.rcx, after.rdi) == (0, 0x8000 + 10000)
    assert (after.word(0x8000 + 9999, 1), after.word(0x8000 + 10000, 1)) == (0x55, 0)


@pytest.mark.parametrize(
    "name, code, size", [("b", "aa", 1), ("w", "66 ab", 2), ("d", "ab", 4), ("q", "48 ab", 8)]
)
def test_stos_stores_the_accumulator(run: Run, name: str, code: str, size: int) -> None:
    after = run(f"stos{name} [rdi]", code, rdi=0x8000, rax=0x1122_3344_5566_7788)
    assert after.word(0x8000) == 0x1122_3344_5566_7788 & (1 << 8 * size) - 1
    assert after.rdi == 0x8000 + size


def test_lods_loads_the_accumulator(run: Run) -> None:
    after = run("lodsb [rsi]", "ac", rsi=0x8000, rax=ALL, memory={0x8000: b"\x01"})
    assert (after.rax, after.rsi) == (ALL & ~0xFF | 1, 0x8001)
    after = run("rep lodsd [rsi]", "f3 ad", rsi=0x8000, rcx=2, rax=ALL, memory={0x8000: TEXT})
    assert after.rax == int.from_bytes(TEXT[4:], "little")


def test_repe_stops_at_the_first_difference(run: Run) -> None:
    after = run("repe cmpsb [rsi], [rdi]", "f3 a6", rsi=0x8000, rdi=0x9000, rcx=8,
                memory={0x8000: b"bus lock", 0x9000: b"bus load"})  # fmt: skip
    assert (after.rcx, after.rsi, after.rdi) == (1, 0x8007, 0x9007)
    assert after.flags == set()  # "c" - "a" is 2


def test_cmps_subtracts_the_destination_from_the_source(run: Run) -> None:
    after = run("cmpsb [rsi], [rdi]", "a6", rsi=0x8000, rdi=0x9000,
                memory={0x8000: b"\x01", 0x9000: b"\x02"})  # fmt: skip
    assert after.flags == {"cf", "sf", "pf", "af"}


def test_repne_scas_finds_a_byte(run: Run) -> None:
    """How strlen used to be written."""
    after = run("repne scasb [rdi]", "f2 ae", rdi=0x8000, rcx=-1, memory={0x8000: TEXT})
    assert (after.rdi, after.rcx) == (0x8009, -10 & ALL)
    assert after.flags == {"zf", "pf"}


def test_repe_scas_goes_to_the_end_if_nothing_differs(run: Run) -> None:
    after = run("repe scasd [rdi]", "f3 af", rdi=0x8000, rcx=3, rax=ALL << 32)
    assert (after.rcx, after.rdi, "zf" in after.flags) == (0, 0x800C, True)


def test_repne_means_rep_where_nothing_is_compared(run: Run) -> None:
    after = run("repne stosb [rdi]", "f2 aa", rdi=0x8000, rcx=3, rax=0)
    assert (after.rcx, after.rdi) == (0, 0x8003)


def test_only_the_source_can_be_overridden(run: Run) -> None:
    after = run("movsb es:[rdi], fs:[rsi]", "64 a4", rsi=0x8000, rdi=0x8000,
                memory={0x9000: b"\x07"})  # fmt: skip
    assert after.accesses == [("read", 0x9000, 1), ("write", 0x8000, 1)]
    assert after.word(0x8000, 1) == 7
    assert run("lodsb gs:[rsi]", "65 ac", rsi=0x8000).accesses == [("read", 0xA000, 1)]


def test_the_address_size_chooses_indexes_and_count(run: Run) -> None:
    after = run("rep movsb [edi], [esi]", "67 f3 a4", rsi=0xF_0000_8000, rdi=0xE_0000_9000,
                rcx=0xD_0000_0002, memory={0x8000: TEXT})  # fmt: skip
    assert after.word(0x9000) == int.from_bytes(TEXT[:2], "little")
    assert (after.rsi, after.rdi, after.rcx) == (0x8002, 0x9002, 0)


def test_16_bit_indexes_wrap(run: Run) -> None:
    after = run("rep stosw [di]", "f3 ab", 16, rdi=0x5_FFFE, rcx=0x5_0002, rax=0x4241)
    assert (after.word(0xFFFE, 2), after.word(0, 2)) == (0x4241, 0x4241)
    assert (after.rdi, after.rcx) == (0x5_0002, 0x5_0000)


def test_a_fault_keeps_what_was_done_before(run: Run) -> None:
    after = run("rep stosq [rdi]", "f3 48 ab", rdi=SIZE - 16, rcx=5, rax=ALL)
    assert (after.fault, after.moved) == (14, 0)
    assert (after.rcx, after.rdi, after.word(SIZE - 8)) == (3, SIZE, ALL)


def test_a_fault_in_a_comparison_keeps_the_flags_of_the_one_before(run: Run) -> None:
    after = run("repe scasb [rdi]", "f3 ae", rdi=SIZE - 1, rcx=5, flags="cf")
    assert (after.fault, after.rcx, after.flags) == (14, 4, {"zf", "pf"})
