"""AND, OR, XOR, NOT, TEST."""

from __future__ import annotations

import pytest

from tests.processor.isa.conftest import Run


@pytest.mark.parametrize(
    "text, code, result, flags",
    [
        ("and al, bl", "20 d8", 0x88, {"sf", "pf"}),
        ("or al, bl", "08 d8", 0xEE, {"sf", "pf"}),
        ("xor al, bl", "30 d8", 0x66, {"pf"}),
        ("test al, bl", "84 d8", 0xAA, {"sf", "pf"}),
    ],
)
def test_carry_and_overflow_become_zero(
    run: Run, text: str, code: str, result: int, flags: set[str]
) -> None:
    after = run(text, code, rax=0xAA, rbx=0xCC, flags="cf of zf")
    assert (after.rax, after.flags) == (result, flags)


def test_xor_of_a_register_with_itself_is_zero(run: Run) -> None:
    after = run("xor eax, eax", "31 c0", rax=(1 << 64) - 1)
    assert (after.rax, after.flags) == (0, {"zf", "pf"})


def test_not_changes_no_flag(run: Run) -> None:
    after = run("not rax", "48 f7 d0", rax=1, flags="cf zf sf")
    assert (after.rax, after.flags) == ((1 << 64) - 2, {"cf", "zf", "sf"})


@pytest.mark.parametrize(
    "text, code, result",
    [
        ("lock and [rdi], al", "f0 20 07", 0x08),
        ("lock or [rdi], al", "f0 08 07", 0xEC),
        ("lock xor [rdi], al", "f0 30 07", 0xE4),
        ("lock not byte ptr [rdi]", "f0 f6 17", 0x33),
    ],
)
def test_lock_makes_the_access_locked(run: Run, text: str, code: str, result: int) -> None:
    after = run(text, code, rdi=0x8003, rax=0x28, memory={0x8003: b"\xcc"})
    assert after.word(0x8003, 1) == result
    assert after.accesses == [("locked", 0x8003, 1)]


def test_test_only_reads(run: Run) -> None:
    after = run("test byte ptr [rdi], 0x80", "f6 07 80", rdi=0x8000, memory={0x8000: b"\x80"})
    assert (after.accesses, after.flags) == ([("read", 0x8000, 1)], {"sf"})
