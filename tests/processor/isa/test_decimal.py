"""Decimal arithmetic in 32-bit code, against the numbers it stands for."""

from __future__ import annotations

import pytest

from tests.processor.isa.conftest import Run


def to_packed(number: int) -> int:
    return number // 10 << 4 | number % 10


@pytest.mark.parametrize("left", range(0, 100, 7))
@pytest.mark.parametrize("right", [0, 1, 9, 45, 58, 99])
def test_daa_after_an_addition_gives_the_decimal_sum(run: Run, left: int, right: int) -> None:
    total = run("add al, bl", "00 d8", 32, rax=to_packed(left), rbx=to_packed(right))
    after = run("daa", "27", 32, rax=total.rax, flags=" ".join(total.flags))
    assert after.rax == to_packed((left + right) % 100)
    assert ("cf" in after.flags) == (left + right > 99)


@pytest.mark.parametrize("left", range(0, 100, 7))
@pytest.mark.parametrize("right", [0, 1, 9, 45, 58, 99])
def test_das_after_a_subtraction_gives_the_decimal_difference(
    run: Run, left: int, right: int
) -> None:
    rest = run("sub al, bl", "28 d8", 32, rax=to_packed(left), rbx=to_packed(right))
    after = run("das", "2f", 32, rax=rest.rax, flags=" ".join(rest.flags))
    assert after.rax == to_packed((left - right) % 100)
    assert ("cf" in after.flags) == (left < right)


@pytest.mark.parametrize("left", range(10))
@pytest.mark.parametrize("right", range(10))
def test_aaa_and_aas_carry_into_ah(run: Run, left: int, right: int) -> None:
    total = run("add al, bl", "00 d8", 32, rax=0x0500 | left, rbx=right)
    after = run("aaa", "37", 32, rax=total.rax, flags=" ".join(total.flags))
    assert after.rax == (5 + (left + right) // 10) << 8 | (left + right) % 10
    assert {"cf", "af"} & after.flags == ({"cf", "af"} if left + right > 9 else set())
    rest = run("sub al, bl", "28 d8", 32, rax=0x0500 | left, rbx=right)
    after = run("aas", "3f", 32, rax=rest.rax, flags=" ".join(rest.flags))
    assert after.rax == (5 - (left < right)) << 8 | (left - right) % 10


def test_aam_and_aad_undo_each_other(run: Run) -> None:
    split = run("aam 0xA", "d4 0a", 32, rax=0x99_0000 | 87)
    assert split.rax == 0x99_0807
    assert run("aad 0xA", "d5 0a", 32, rax=split.rax).rax == 0x99_0000 | 87


def test_aam_by_zero_is_a_division_by_zero(run: Run) -> None:
    assert run("aam 0", "d4 00", 32, rax=5).fault == 0


def test_salc_spreads_the_carry(run: Run) -> None:
    assert run("salc", "d6", 32, rax=0x1234, flags="cf").rax == 0x12FF
    assert run("salc", "d6", 32, rax=0x1234).rax == 0x1200


@pytest.mark.parametrize("code", ["37 c0", "3f c0", "27 c0", "2f c0", "d4 0a", "d5 0a", "d6 c0"])
def test_none_of_them_exists_in_64_bit_code(run: Run, code: str) -> None:
    assert run("(bad)", code).fault == 6
