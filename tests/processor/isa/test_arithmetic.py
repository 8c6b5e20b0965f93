"""ADD to DEC: results, the six flags, widths, and what a fault leaves behind."""

from __future__ import annotations

import pytest

from tests.processor.isa.conftest import Run

UNMAPPED = 0x5000_0000


def test_add_sets_the_flags_of_the_sum(run: Run) -> None:
    after = run("add eax, ebx", "01 d8", rax=0xFFFFFFFF, rbx=1)
    assert (after.rax, after.flags) == (0, {"cf", "zf", "pf", "af"})
    after = run("add eax, ebx", "01 d8", rax=0x7FFFFFFF, rbx=1)
    assert (after.rax, after.flags) == (0x80000000, {"of", "sf", "pf", "af"})


def test_a_32_bit_result_clears_the_upper_half(run: Run) -> None:
    after = run("add eax, ebx", "01 d8", rax=0xAAAA_AAAA_0000_0001, rbx=2)
    assert after.rax == 3


@pytest.mark.parametrize("text, code", [("add ax, bx", "66 01 d8"), ("add al, bl", "00 d8")])
def test_a_narrow_result_keeps_the_rest(run: Run, text: str, code: str) -> None:
    after = run(text, code, rax=0xAAAA_AAAA_AAAA_AA01, rbx=0x1102)
    assert after.rax & ~0xFFFF == 0xAAAA_AAAA_AAAA_0000
    assert after.rax & 0xFF == 3


def test_ah_is_the_second_byte(run: Run) -> None:
    after = run("add ah, bl", "00 dc", rax=0x01FF, rbx=2)
    assert (after.rax, after.flags) == (0x03FF, {"pf"})


def test_sub_of_a_greater_number_borrows(run: Run) -> None:
    after = run("sub rax, rbx", "48 29 d8", rax=1, rbx=2)
    assert (after.rax, after.flags) == ((1 << 64) - 1, {"cf", "sf", "pf", "af"})


def test_cmp_changes_no_register(run: Run) -> None:
    after = run("cmp eax, ebx", "39 d8", rax=0xF_0000_0007, rbx=7)
    assert (after.rax, after.flags) == (0xF_0000_0007, {"zf", "pf"})


@pytest.mark.parametrize(
    "carry, rax, rbx, result, flags",
    [
        ("", 5, 6, 11, set()),
        ("cf", 5, 6, 12, {"pf"}),
        ("cf", 0xFF, 0, 0, {"cf", "zf", "pf", "af"}),
        ("cf", 0xFF, 0xFF, 0xFF, {"cf", "sf", "pf", "af"}),
        ("cf", 0x7F, 0, 0x80, {"of", "sf", "af"}),
    ],
)
def test_adc_adds_the_carry(
    run: Run, carry: str, rax: int, rbx: int, result: int, flags: set[str]
) -> None:
    after = run("adc al, bl", "10 d8", rax=rax, rbx=rbx, flags=carry)
    assert (after.rax, after.flags) == (result, flags)


@pytest.mark.parametrize(
    "carry, rax, rbx, result, flags",
    [
        ("", 6, 5, 1, set()),
        ("cf", 6, 5, 0, {"zf", "pf"}),
        ("cf", 0, 0xFF, 0, {"cf", "zf", "pf", "af"}),
        ("cf", 0x80, 0, 0x7F, {"of", "af"}),
    ],
)
def test_sbb_takes_the_borrow(
    run: Run, carry: str, rax: int, rbx: int, result: int, flags: set[str]
) -> None:
    after = run("sbb al, bl", "18 d8", rax=rax, rbx=rbx, flags=carry)
    assert (after.rax, after.flags) == (result, flags)


def test_a_long_addition_goes_through_adc(run: Run) -> None:
    low = run("add rax, rbx", "48 01 d8", rax=1 << 63, rbx=1 << 63)
    carried = " ".join(low.flags)
    high = run("adc rax, rbx", "48 11 d8", rax=4, rbx=5, flags=carried)
    assert (low.rax, high.rax) == (0, 10)


def test_inc_and_dec_keep_the_carry(run: Run) -> None:
    after = run("inc al", "fe c0", rax=0xFF, flags="cf")
    assert (after.rax, after.flags) == (0, {"cf", "zf", "pf", "af"})
    after = run("dec al", "fe c8", rax=0x80)
    assert (after.rax, after.flags) == (0x7F, {"of", "af"})


def test_neg_carries_unless_zero(run: Run) -> None:
    assert run("neg eax", "f7 d8").flags == {"zf", "pf"}
    after = run("neg eax", "f7 d8", rax=0x80000000)
    assert (after.rax, after.flags) == (0x80000000, {"cf", "of", "sf", "pf"})


def test_a_memory_destination_is_one_access(run: Run) -> None:
    after = run("add [rdi], eax", "01 07", rdi=0x8000, rax=3, memory={0x8000: b"\x04"})
    assert (after.word(0x8000), after.accesses) == (7, [("update", 0x8000, 4)])


@pytest.mark.parametrize(
    "text, code",
    [
        ("lock add [rdi], eax", "f0 01 07"),
        ("lock adc [rdi], eax", "f0 11 07"),
        ("lock sub [rdi], eax", "f0 29 07"),
        ("lock sbb [rdi], eax", "f0 19 07"),
        ("lock inc dword ptr [rdi]", "f0 ff 07"),
        ("lock dec dword ptr [rdi]", "f0 ff 0f"),
        ("lock neg dword ptr [rdi]", "f0 f7 1f"),
    ],
)
def test_lock_makes_the_access_locked(run: Run, text: str, code: str) -> None:
    assert run(text, code, rdi=0x8000).accesses == [("locked", 0x8000, 4)]


def test_lock_with_a_register_destination_does_not_decode(run: Run) -> None:
    assert run("(bad)", "f0 01 d8").fault == 6


def test_a_fault_changes_nothing(run: Run) -> None:
    after = run("add [rdi], eax", "01 07", rdi=UNMAPPED, rax=3, flags="cf of")
    assert (after.fault, after.error_code, after.moved) == (14, 6, 0)
    assert (after.rax, after.flags) == (3, {"cf", "of"})


def test_an_immediate_byte_is_sign_extended(run: Run) -> None:
    assert run("add rax, 0xFFFFFFFFFFFFFFFF", "48 83 c0 ff", rax=5).rax == 4
    assert run("sub rax, 0xFFFFFFFF80000000", "48 81 e8 00 00 00 80", rax=1).rax == 0x80000001
