"""MUL, IMUL, DIV, IDIV: the whole product, quotients at the edges, and #DE."""

from __future__ import annotations

import pytest

from tests.processor.isa.conftest import Run

DE = 0
ALL = (1 << 64) - 1


def carries(flags: set[str]) -> set[str]:
    return flags & {"cf", "of"}


def test_mul_of_bytes_fills_ax(run: Run) -> None:
    after = run("mul bl", "f6 e3", rax=0x7777_00FF, rbx=0xFF)
    assert (after.rax, carries(after.flags)) == (0x7777_FE01, {"cf", "of"})


def test_mul_of_dwords_clears_both_upper_halves(run: Run) -> None:
    after = run("mul ebx", "f7 e3", rax=ALL, rbx=2, rdx=ALL)
    assert (after.rdx, after.rax, carries(after.flags)) == (1, 0xFFFFFFFE, {"cf", "of"})


def test_mul_of_qwords_gives_128_bits(run: Run) -> None:
    after = run("mul rbx", "48 f7 e3", rax=ALL, rbx=ALL)
    assert (after.rdx << 64 | after.rax) == ALL * ALL


def test_mul_without_an_upper_half_clears_carry_and_overflow(run: Run) -> None:
    after = run("mul bx", "66 f7 e3", rax=0x10, rbx=0x10, rdx=0xFFFF, flags="cf of")
    assert (after.rdx, after.rax, carries(after.flags)) == (0, 0x100, set())


@pytest.mark.parametrize(
    "left, right, product, overflows",
    [(7, -3, -21, False), (0x40, 2, 0x80, True), (-0x80, 1, -0x80, False), (-0x80, -1, 0x80, True)],
)
def test_imul_of_bytes_is_signed(
    run: Run, left: int, right: int, product: int, overflows: bool
) -> None:
    after = run("imul bl", "f6 eb", rax=left & 0xFF, rbx=right & 0xFF)
    assert after.rax == product & 0xFFFF
    assert carries(after.flags) == ({"cf", "of"} if overflows else set())


def test_imul_of_qwords_gives_128_bits(run: Run) -> None:
    after = run("imul rbx", "48 f7 eb", rax=1 << 63, rbx=-1)
    assert (after.rdx, after.rax, carries(after.flags)) == (0, 1 << 63, {"cf", "of"})


def test_imul_of_two_operands_keeps_the_low_half(run: Run) -> None:
    after = run("imul eax, ebx", "0f af c3", rax=0x10000, rbx=0x10000)
    assert (after.rax, carries(after.flags)) == (0, {"cf", "of"})


def test_imul_of_three_operands_leaves_the_source(run: Run) -> None:
    after = run("imul rax, rbx, 0xFFFFFFFFFFFFFFFE", "48 6b c3 fe", rbx=21)
    assert (after.rax, after.rbx, carries(after.flags)) == (-42 & ALL, 21, set())


def test_div_of_bytes_divides_ax(run: Run) -> None:
    assert run("div bl", "f6 f3", rax=0x0801, rbx=9).rax == 0x06E3  # 2049 = 227 * 9 + 6


def test_div_uses_the_upper_half(run: Run) -> None:
    after = run("div rbx", "48 f7 f3", rdx=1, rax=0, rbx=3)
    assert (after.rax, after.rdx) == ((1 << 64) // 3, (1 << 64) % 3)


@pytest.mark.parametrize("rdx, rbx", [(0, 0), (5, 5), (6, 5)])
def test_div_faults_when_the_quotient_does_not_fit(run: Run, rdx: int, rbx: int) -> None:
    after = run("div ebx", "f7 f3", rdx=rdx, rax=9, rbx=rbx)
    assert (after.fault, after.error_code) == (DE, None)
    assert (after.rax, after.rdx, after.moved) == (9, rdx, 0)


def test_div_keeps_the_flags(run: Run) -> None:
    assert run("div ebx", "f7 f3", rax=9, rbx=2, flags="cf of pf").flags == {"cf", "of", "pf"}


@pytest.mark.parametrize("dividend", [7, -7])
@pytest.mark.parametrize("divisor", [2, -2])
def test_idiv_rounds_to_zero_and_the_remainder_follows_the_dividend(
    run: Run, dividend: int, divisor: int
) -> None:
    high = -1 if dividend < 0 else 0
    after = run("idiv rbx", "48 f7 fb", rdx=high, rax=dividend, rbx=divisor)
    quotient = 3 if (dividend < 0) == (divisor < 0) else -3
    assert after.rax == quotient & ALL
    assert after.rdx == (1 if dividend > 0 else -1) & ALL


@pytest.mark.parametrize(
    "dividend, divisor, result",
    [
        (127, 1, 127),
        (128, 1, None),
        (-128, 1, -128),
        (-129, 1, None),
        (128, -1, -128),
        (129, -1, None),
        (-128, -1, None),
        (-(1 << 15), -1, None),
        (-(1 << 15), -128, None),
        (-127 * 128 - 127, -128, 127),
        (5, 0, None),
    ],
)
def test_idiv_faults_exactly_when_the_quotient_does_not_fit(
    run: Run, dividend: int, divisor: int, result: int | None
) -> None:
    after = run("idiv bl", "f6 fb", rax=dividend & 0xFFFF, rbx=divisor & 0xFF)
    if result is None:
        assert (after.fault, after.rax) == (DE, dividend & 0xFFFF)
    else:
        assert (after.fault, after.rax & 0xFF) == (None, result & 0xFF)


def test_idiv_of_every_byte_by_every_byte(run: Run) -> None:
    """Against Python's own division, with AX sign-extended from AL."""
    for dividend in range(-128, 128, 5):
        for divisor in (-128, -127, -3, -1, 1, 2, 3, 127):
            after = run("idiv bl", "f6 fb", rax=dividend & 0xFFFF, rbx=divisor & 0xFF)
            quotient = abs(dividend) // abs(divisor)
            quotient = quotient if (dividend < 0) == (divisor < 0) else -quotient
            if quotient == 128:
                assert after.fault == DE
                continue
            remainder = dividend - quotient * divisor
            assert after.rax == (remainder & 0xFF) << 8 | quotient & 0xFF
