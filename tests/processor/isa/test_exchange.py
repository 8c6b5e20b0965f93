"""XCHG, XADD, CMPXCHG and their wide kin; registers that are two operands at once."""

from __future__ import annotations

import pytest

from tests.processor.isa.conftest import Run

ALL = (1 << 64) - 1
GP = 13


def test_xchg_swaps_and_locks_memory_without_a_prefix(run: Run) -> None:
    after = run("xchg [rdi], eax", "87 07", rdi=0x8000, rax=ALL, memory={0x8000: b"\x05"})
    assert (after.rax, after.word(0x8000)) == (5, 0xFFFFFFFF)
    assert after.accesses == [("locked", 0x8000, 4)]
    after = run("xchg ebx, eax", "93", rax=ALL, rbx=ALL << 32 | 7)
    assert (after.rax, after.rbx) == (7, 0xFFFFFFFF)


def test_xadd_leaves_the_old_value_in_the_source(run: Run) -> None:
    after = run("lock xadd [rdi], al", "f0 0f c0 07", rdi=0x8000, rax=0x1FF, memory={0x8000: b"\2"})
    assert (after.word(0x8000, 1), after.rax, after.flags) == (1, 0x102, {"cf", "af"})
    assert after.accesses == [("locked", 0x8000, 1)]


def test_xadd_of_one_register_doubles_it(run: Run) -> None:
    assert run("xadd eax, eax", "0f c1 c0", rax=0x8000_0001).rax == 2


@pytest.mark.parametrize(
    "bits, text, code",
    [
        (8, "bl, cl", "0f b0 cb"),
        (16, "bx, cx", "66 0f b1 cb"),
        (32, "ebx, ecx", "0f b1 cb"),
        (64, "rbx, rcx", "48 0f b1 cb"),
    ],
)
def test_cmpxchg_of_registers(run: Run, bits: int, text: str, code: str) -> None:
    """The register that is not written keeps its upper half."""
    low = (1 << bits) - 1
    given = {"rax": ALL, "rcx": 9}
    equal = run(f"cmpxchg {text}", code, rbx=ALL, **given)
    upper = 0 if bits >= 32 else ALL & ~low
    assert (equal.rbx, equal.rax, "zf" in equal.flags) == (upper | 9, ALL, True)
    different = run(f"cmpxchg {text}", code, rbx=ALL - 1, **given)
    assert (different.rbx, "zf" in different.flags) == (ALL - 1, False)
    assert different.rax == upper | low - 1


def test_cmpxchg_writes_memory_even_if_it_fails(run: Run) -> None:
    code, text = "f0 0f b1 0f", "lock cmpxchg [rdi], ecx"
    after = run(text, code, rdi=0x803E, rax=1, rcx=9, memory={0x803E: b"\2"})
    assert (after.rax, after.word(0x803E)) == (2, 2)
    assert after.accesses == [("locked", 0x803E, 4)]


def test_cmpxchg8b_and_16b(run: Run) -> None:
    given = {"rdi": 0x8000, "rdx": 2, "rax": 1, "rcx": 4, "rbx": 3}
    stored = {0x8000: (2 << 32 | 1).to_bytes(8, "little")}
    after = run("cmpxchg8b [rdi]", "0f c7 0f", memory=stored, **given)
    assert (after.word(0x8000), after.flags) == (4 << 32 | 3, {"zf"})
    after = run("cmpxchg8b [rdi]", "0f c7 0f", **given)
    assert (after.rdx, after.rax, after.flags) == (0, 0, set())
    wide = {0x8000: (2 << 64 | 1).to_bytes(16, "little")}
    after = run("lock cmpxchg16b [rdi]", "f0 48 0f c7 0f", memory=wide, **given)
    assert (after.word(0x8000, 16), after.flags) == (4 << 64 | 3, {"zf"})


def test_cmpxchg16b_must_be_aligned(run: Run) -> None:
    after = run("lock cmpxchg16b [rdi]", "f0 48 0f c7 0f", rdi=0x8008)
    assert (after.fault, after.error_code, after.accesses) == (GP, 0, [])


@pytest.mark.parametrize(
    "text, code, rax, rcx, result",
    [
        ("xchg ah, al", "86 c4", 0x0105, 0, 0x0501),
        ("xadd ah, al", "0f c0 c4", 0x0105, 0, 0x0601),
        ("xadd al, ah", "0f c0 e0", 0x0105, 0, 0x0506),
        ("cmpxchg eax, ecx", "0f b1 c8", 5, 9, 9),
        ("cmpxchg al, cl", "0f b0 c8", 0x105, 9, 0x109),
        ("cmpxchg al, ah", "0f b0 e0", 0x0105, 0, 0x0101),
        ("cmpxchg ah, cl", "0f b0 cc", 0x0505, 9, 0x0905),
        ("cmpxchg ah, cl", "0f b0 cc", 0x0105, 9, 0x0101),
    ],
)
def test_one_register_under_two_names(
    run: Run, text: str, code: str, rax: int, rcx: int, result: int
) -> None:
    assert run(text, code, rax=rax, rcx=rcx).rax == result
