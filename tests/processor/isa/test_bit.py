"""Bits: the bit string that reaches beyond its operand, scans, counts, CRC32, SETcc."""

from __future__ import annotations

import pytest

from tests.processor.isa.conftest import Run
from trapline.processor.isa.conditions import CONDITIONS

ALL = (1 << 64) - 1


@pytest.mark.parametrize(
    "name, code, before, after_bit",
    [("bt", "a3", 1, 1), ("bts", "ab", 0, 1), ("btr", "b3", 1, 0), ("btc", "bb", 1, 0)],
)
def test_the_bit_goes_to_carry_and_changes(
    run: Run, name: str, code: str, before: int, after_bit: int
) -> None:
    word = 0x5A5A_0000 & ~(1 << 9) | before << 9
    after = run(f"{name} eax, ebx", f"0f {code} d8", rax=word, rbx=32 + 9, flags="zf sf")
    assert ("cf" in after.flags) == bool(before)
    assert after.rax == word & ~(1 << 9) | after_bit << 9
    assert {"zf", "sf"} <= after.flags


def test_an_immediate_stays_within_the_operand(run: Run) -> None:
    after = run("bts dword ptr [rdi], 0x21", "0f ba 2f 21", rdi=0x8000)
    assert (after.word(0x8000), after.accesses) == (2, [("update", 0x8000, 4)])


@pytest.mark.parametrize(
    "index, linear, bit",
    [(0, 0x8000, 0), (31, 0x8000, 31), (32, 0x8004, 0), (1000, 0x807C, 8), (-1, 0x7FFC, 31),
     (-32, 0x7FFC, 0), (-33, 0x7FF8, 31)],
)  # fmt: skip
def test_a_register_index_reaches_beyond_the_operand(
    run: Run, index: int, linear: int, bit: int
) -> None:
    after = run("bts [rdi], eax", "0f ab 07", rdi=0x8000, rax=index & 0xFFFFFFFF)
    assert (after.word(linear, 4), after.accesses) == (1 << bit, [("update", linear, 4)])


@pytest.mark.parametrize(
    "text, code, index, linear",
    [
        ("bts [rdi], ax", "66 0f ab 07", -17, 0x7FFC),
        ("bts [rdi], rax", "48 0f ab 07", -65, 0x7FF0),
        ("bts [rdi], rax", "48 0f ab 07", 0x2_0000, 0xC000),
        ("bts [edi], eax", "67 0f ab 07", -1, 0x7FFC),
    ],
)
def test_the_index_counts_operands_of_its_own_size(
    run: Run, text: str, code: str, index: int, linear: int
) -> None:
    after = run(text, code, rdi=0x8000, rax=index)
    assert after.accesses[0][1] == linear


def test_a_bit_string_wraps_at_the_address_size(run: Run) -> None:
    after = run("bts [edi], eax", "67 0f ab 07", rdi=0xFFFF_FFFC, rax=32)
    assert after.accesses == [("update", 0, 4)]
    after = run("bts [di], ax", "0f ab 05", 16, rdi=0xFFFE, rax=16)
    assert after.accesses == [("update", 0, 2)]


@pytest.mark.parametrize("name, code", [("bts", "ab"), ("btr", "b3"), ("btc", "bb")])
def test_lock_locks_where_the_bit_is(run: Run, name: str, code: str) -> None:
    after = run(f"lock {name} [rdi], eax", f"f0 0f {code} 07", rdi=0x8000, rax=64)
    assert after.accesses == [("locked", 0x8008, 4)]


def test_the_segment_override_holds_for_the_bit_string(run: Run) -> None:
    after = run("bts fs:[rdi], eax", "64 0f ab 07", rdi=0x8000, rax=32)
    assert after.accesses == [("update", 0x9004, 4)]


@pytest.mark.parametrize("name, code, position", [("bsf", "0f bc", 4), ("bsr", "0f bd", 12)])
def test_scans_find_the_first_bit(run: Run, name: str, code: str, position: int) -> None:
    after = run(f"{name} eax, ebx", f"{code} c3", rax=ALL, rbx=0xFF_0000_1010)
    assert after.rax == position
    assert "zf" not in after.flags


@pytest.mark.parametrize(
    "name, code", [("bsf", "0f bc"), ("bsr", "0f bd"), ("tzcnt", "f3 0f bc"), ("lzcnt", "f3 0f bd")]
)
def test_a_scan_of_zero_leaves_the_whole_destination(run: Run, name: str, code: str) -> None:
    after = run(f"{name} eax, ebx", f"{code} c3", rax=ALL, rbx=1 << 32)
    assert (after.rax, "zf" in after.flags) == (ALL, True)


def test_tzcnt_and_lzcnt_are_scans_without_their_features(run: Run) -> None:
    assert run("tzcnt eax, ebx", "f3 0f bc c3", rbx=0x50).rax == 4
    assert run("lzcnt eax, ebx", "f3 0f bd c3", rbx=0x50).rax == 6  # LZCNT would say 25


def test_popcnt_clears_all_flags_but_zero(run: Run) -> None:
    after = run("popcnt rax, rbx", "f3 48 0f b8 c3", rbx=ALL, flags="cf pf af zf sf of")
    assert (after.rax, after.flags) == (64, set())
    assert run("popcnt eax, ebx", "f3 0f b8 c3", rax=ALL, flags="cf").flags == {"zf"}


def test_crc32_of_the_nine_digits(run: Run) -> None:
    """The check value of CRC-32C (RFC 3720, B.4, by its usual test message)."""
    register = 0xFFFFFFFF
    for digit in b"123456789":
        register = run("crc32 eax, bl", "f2 0f 38 f0 c3", rax=register, rbx=digit).rax
    assert register ^ 0xFFFFFFFF == 0xE3069283


@pytest.mark.parametrize(
    "text, code, size",
    [
        ("crc32 eax, bx", "66 f2 0f 38 f1 c3", 2),
        ("crc32 eax, ebx", "f2 0f 38 f1 c3", 4),
        ("crc32 rax, rbx", "f2 48 0f 38 f1 c3", 8),
    ],
)
def test_crc32_of_more_bytes_is_that_of_each_byte(
    run: Run, text: str, code: str, size: int
) -> None:
    message = bytes(range(0xF1, 0xF1 + size))
    register = 0x1234_5678
    for byte in message:
        register = run("crc32 eax, bl", "f2 0f 38 f0 c3", rax=register, rbx=byte).rax
    whole = run(text, code, rax=ALL << 32 | 0x1234_5678, rbx=int.from_bytes(message, "little"))
    assert whole.rax == register


def _holds(name: str, flags: set[str]) -> bool:
    cf, zf, sf, of, pf = (flag in flags for flag in ("cf", "zf", "sf", "of", "pf"))
    base = {
        "o": of, "b": cf, "e": zf, "be": cf or zf, "s": sf, "p": pf, "l": sf != of,
        "le": zf or sf != of,
    }  # fmt: skip
    opposite = {"no": "o", "ae": "b", "ne": "e", "a": "be", "ns": "s", "np": "p", "ge": "l",
                "g": "le"}  # fmt: skip
    return base[name] if name in base else not base[opposite[name]]


@pytest.mark.parametrize("code, name", list(enumerate(CONDITIONS)))
def test_every_condition_for_every_combination_of_flags(run: Run, code: int, name: str) -> None:
    names = ("cf", "zf", "sf", "of", "pf")
    for choice in range(32):
        flags = {flag for n, flag in enumerate(names) if choice >> n & 1}
        after = run(f"set{name} al", f"0f {0x90 + code:02x} c0", rax=0x1F0, flags=" ".join(flags))
        assert after.rax == 0x100 | _holds(name, flags), flags


@pytest.mark.parametrize("code, name", list(enumerate(CONDITIONS)))
@pytest.mark.parametrize("left, right", [(5, 5), (5, 6), (6, 5), (-1, 1), (1, -1), (-128, 1)])
def test_conditions_compare_numbers(run: Run, code: int, name: str, left: int, right: int) -> None:
    compared = run("cmp al, bl", "38 d8", rax=left & 0xFF, rbx=right & 0xFF)
    after = run(f"set{name} al", f"0f {0x90 + code:02x} c0", flags=" ".join(compared.flags))
    above, greater = (left & 0xFF) > (right & 0xFF), left > right
    meaning = {"e": left == right, "ne": left != right, "a": above, "ae": above or left == right,
               "b": not above and left != right, "be": not above, "g": greater,
               "ge": greater or left == right, "l": not greater and left != right,
               "le": not greater}  # fmt: skip
    if name in meaning:
        assert after.rax == meaning[name]
