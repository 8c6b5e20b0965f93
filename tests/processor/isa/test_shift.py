"""Shifts and rotates for every count, against what the words mean bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.processor.isa.conftest import Run

ALL = (1 << 64) - 1
PATTERNS = (0x81, 0x7E, 0xA5, 0x01, 0x80, 0xFF)
ACCUMULATORS = {8: "al", 16: "ax", 32: "eax", 64: "rax"}
OPCODES = {8: "d2", 16: "66 d3", 32: "d3", 64: "48 d3"}
EXTENSIONS = {"rol": 0, "ror": 1, "rcl": 2, "rcr": 3, "shl": 4, "shr": 5, "sar": 7}

Step = Callable[[int, int, int], tuple[int, int]]


def _shl(word: int, carry: int, width: int) -> tuple[int, int]:
    return word << 1 & (1 << width) - 1, word >> width - 1


def _shr(word: int, carry: int, width: int) -> tuple[int, int]:
    return word >> 1, word & 1


def _sar(word: int, carry: int, width: int) -> tuple[int, int]:
    return word >> 1 | word & 1 << width - 1, word & 1


def _rol(word: int, carry: int, width: int) -> tuple[int, int]:
    out = word >> width - 1
    return word << 1 & (1 << width) - 1 | out, out


def _ror(word: int, carry: int, width: int) -> tuple[int, int]:
    return word >> 1 | (word & 1) << width - 1, word & 1


def _rcl(word: int, carry: int, width: int) -> tuple[int, int]:
    return word << 1 & (1 << width) - 1 | carry, word >> width - 1


def _rcr(word: int, carry: int, width: int) -> tuple[int, int]:
    return word >> 1 | carry << width - 1, word & 1


STEPS: dict[str, Step] = {
    "shl": _shl, "shr": _shr, "sar": _sar, "rol": _rol, "ror": _ror, "rcl": _rcl, "rcr": _rcr,
}  # fmt: skip


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("name", STEPS)
def test_a_count_is_so_many_single_steps(run: Run, name: str, width: int) -> None:
    code = f"{OPCODES[width]} {0xC0 | EXTENSIONS[name] << 3:02x}"
    text = f"{name} {ACCUMULATORS[width]}, cl"
    for pattern in PATTERNS:
        word = pattern * 0x0101_0101_0101_0101 & (1 << width) - 1
        for start in (0, 1):
            expected, carry = word, start
            for count in range(1, 64 if width == 64 else 32):
                expected, carry = STEPS[name](expected, carry, width)
                after = run(text, code, rax=word, rcx=count, flags="cf" if start else "")
                assert after.rax == expected, (hex(word), count)
                assert ("cf" in after.flags) == bool(carry), (hex(word), count)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("width, count", [(8, 0), (16, 32), (32, 0x20), (32, 0xE0), (64, 0x40)])
def test_a_count_of_zero_changes_no_flag(run: Run, name: str, width: int, count: int) -> None:
    code = f"{OPCODES[width]} {0xC0 | EXTENSIONS[name] << 3:02x}"
    text = f"{name} {ACCUMULATORS[width]}, cl"
    for flags in ("", "cf pf af zf sf of"):
        after = run(text, code, rax=ALL, rcx=count, flags=flags)
        assert after.flags == set(flags.split())
        assert after.rax == (0xFFFFFFFF if width == 32 else ALL)  # written all the same


@pytest.mark.parametrize(
    "name, word, carry, overflows",
    [
        ("shl", 0x40, 0, True),
        ("shl", 0xC0, 0, False),
        ("shr", 0x80, 0, True),
        ("shr", 0x7F, 0, False),
        ("sar", 0x80, 0, False),
        ("rol", 0x40, 0, True),
        ("rol", 0xC0, 0, False),
        ("ror", 0x01, 0, True),
        ("ror", 0x81, 0, False),
        ("rcl", 0x40, 0, True),
        ("rcr", 0x00, 1, True),
        ("rcr", 0x80, 1, False),
    ],
)
def test_a_shift_by_one_tells_a_change_of_sign(
    run: Run, name: str, word: int, carry: int, overflows: bool
) -> None:
    after = run(
        f"{name} al, 1", f"d0 {0xC0 | EXTENSIONS[name] << 3:02x}", rax=word, flags="cf" * carry
    )
    assert ("of" in after.flags) == overflows


def test_shifts_set_the_flags_of_their_result_and_rotates_do_not(run: Run) -> None:
    after = run("shl al, 4", "c0 e0 04", rax=0x18, flags="zf")
    assert (after.rax, after.flags & {"cf", "sf", "zf"}) == (0x80, {"cf", "sf"})
    after = run("rol al, 4", "c0 c0 04", rax=0x18, flags="zf pf")
    assert (after.rax, after.flags & {"zf", "pf", "sf"}) == (0x81, {"zf", "pf"})


@pytest.mark.parametrize("bits, text, code", [(32, "eax, ebx", "0f a5 d8"),
                                              (64, "rax, rbx", "48 0f a5 d8")])  # fmt: skip
def test_shld_takes_the_top_bits_of_the_source(run: Run, bits: int, text: str, code: str) -> None:
    mask = (1 << bits) - 1
    left, right = 0x8123_4567_89AB_CDEF & mask, 0xFEDC_BA98_7654_3210 & mask
    for count in range(1, bits):
        after = run(f"shld {text}, cl", code, rax=left, rbx=right, rcx=count)
        wide = (left << bits | right) << count
        assert after.rax == wide >> bits & mask
        assert ("cf" in after.flags) == bool(wide >> 2 * bits & 1)
        assert after.rbx == right


@pytest.mark.parametrize("bits, text, code", [(32, "eax, ebx", "0f ad d8"),
                                              (64, "rax, rbx", "48 0f ad d8")])  # fmt: skip
def test_shrd_takes_the_low_bits_of_the_source(run: Run, bits: int, text: str, code: str) -> None:
    mask = (1 << bits) - 1
    left, right = 0x8123_4567_89AB_CDEF & mask, 0xFEDC_BA98_7654_3211 & mask
    for count in range(1, bits):
        after = run(f"shrd {text}, cl", code, rax=left, rbx=right, rcx=count)
        wide = right << bits | left
        assert after.rax == wide >> count & mask
        assert ("cf" in after.flags) == bool(left >> count - 1 & 1)


def test_shld_of_words_beyond_sixteen_brings_the_source_in_again(run: Run) -> None:
    """Undefined in the manual; measured on Zen 5."""
    after = run("shld ax, bx, 0x16", "66 0f a4 d8 16", rax=0, rbx=0x42EA)
    assert after.rax == 0xBA90
    after = run("shrd ax, bx, 0x16", "66 0f ac d8 16", rax=0, rbx=0x42EA)
    assert after.rax == 0xA90B


def test_a_shift_in_memory_is_one_access(run: Run) -> None:
    after = run("shl dword ptr [rdi], 1", "d1 27", rdi=0x8000, memory={0x8000: b"\x81"})
    assert (after.word(0x8000), after.accesses) == (0x102, [("update", 0x8000, 4)])


def test_the_second_encoding_of_shl(run: Run) -> None:
    assert run("shl eax, 3", "c1 f0 03", rax=1).rax == 8
