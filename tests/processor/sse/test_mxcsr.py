"""MXCSR over several instructions in one run: native code works with the host's own register."""

from __future__ import annotations

import struct
from random import Random

import pytest

from tests.processor.sse.program import ENGINES, Program, at

INITIAL, MASKS = 0x1F80, 0x1F80
IE, ZE, PE = 1, 4, 0x20
LDMXCSR, STMXCSR = "0fae/2", "0fae/3"
ADDSD, DIVSD, CVTSD2SI = (bytes.fromhex(code) for code in ("f20f58c1", "f20f5ec1", "f20f2dc0"))
GP, UD, XM = 13, 6, 19


def double(number: float) -> int:
    return int.from_bytes(struct.pack("<d", number), "little")


def program(engine: str, *words: int) -> Program:
    """With control words at [DATA], and 1.0 and 3.0 in the first registers."""
    made = Program(engine)
    made.put(0, b"".join(word.to_bytes(4, "little") for word in words))
    made.state.set_xmm(0, double(1.0))
    made.state.set_xmm(1, double(3.0))
    return made


@pytest.mark.parametrize("engine", ENGINES)
def test_a_store_sees_what_was_just_raised(engine: str) -> None:
    ran = program(engine).run(at(STMXCSR, 8) + DIVSD + at(STMXCSR, 12))
    assert (ran.word(8), ran.word(12)) == (INITIAL, INITIAL | PE)
    assert ran.state.mxcsr == INITIAL | PE


@pytest.mark.parametrize("engine", ENGINES)
def test_a_load_clears_the_flags(engine: str) -> None:
    ran = program(engine, INITIAL).run(DIVSD + at(LDMXCSR, 0) + at(STMXCSR, 8))
    assert ran.word(8) == INITIAL
    assert ran.state.mxcsr == INITIAL


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rounding, result", [(0, 2), (1, 2), (2, 3), (3, 2)])
def test_the_rounding_loaded_is_the_one_used(engine: str, rounding: int, result: int) -> None:
    made = program(engine, INITIAL | rounding << 13)
    made.state.set_xmm(0, double(2.5))
    ran = made.run(at(LDMXCSR, 0) + CVTSD2SI)
    assert ran.state.rax == result


@pytest.mark.parametrize("engine", ENGINES)
def test_an_exception_unmasked_on_the_way_is_raised(engine: str) -> None:
    made = program(engine, INITIAL & ~(ZE << 7))
    made.state.set_xmm(1, 0)
    load = at(LDMXCSR, 0)
    ran = made.run(ADDSD + load + DIVSD)
    assert (ran.vector, ran.done) == (XM, len(ADDSD + load))
    assert ran.state.mxcsr == INITIAL & ~(ZE << 7) | ZE
    assert ran.state.xmm(0) == double(1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_osxmmexcpt_it_is_undefined(engine: str) -> None:
    made = program(engine)
    made.state.mxcsr, made.state.cr4 = 0, 0x220
    ran = made.run(DIVSD)
    assert (ran.vector, ran.done, ran.state.mxcsr) == (UD, 0, PE)


@pytest.mark.parametrize("engine", ENGINES)
def test_operand_exceptions_hide_those_of_results(engine: str) -> None:
    """DIVPD of 1/3 and 1/0 with everything unmasked: ZE alone (SDM 1, "Handling Multiple")."""
    made = program(engine)
    made.state.mxcsr = 0
    made.state.set_xmm(0, double(1.0) << 64 | double(1.0))
    made.state.set_xmm(1, double(3.0))
    ran = made.run(bytes.fromhex("660f5ec1"))
    assert (ran.vector, ran.state.mxcsr) == (XM, ZE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bit", range(16, 32))
def test_a_reserved_bit_is_refused(engine: str, bit: int) -> None:
    ran = program(engine, INITIAL | 1 << bit).run(at(LDMXCSR, 0))
    assert (ran.vector, ran.fault and ran.fault.error_code) == (GP, 0)
    assert ran.state.mxcsr == INITIAL


@pytest.mark.parametrize("engine", ENGINES)
def test_a_comparison_raises_even_if_its_flags_are_not_used(engine: str) -> None:
    """COMISD of a NaN, then CMP overwrites the flags: native code must not drop the COMISD."""
    made = program(engine)
    made.state.set_xmm(1, double(float("nan")))
    ran = made.run(bytes.fromhex("660f2fc1 4839c0"))
    assert ran.state.mxcsr == INITIAL | IE


_OPERATIONS = ("58", "59", "5c", "5e", "5d", "5f", "51")
_PREFIXES = ("f2", "f3", "66", "")


def _random_code(source: Random) -> bytes:
    parts = []
    for _ in range(24):
        chance = source.random()
        if chance < 0.12:
            parts.append(at(LDMXCSR, 4 * source.randrange(8)))
        elif chance < 0.2:
            parts.append(at(STMXCSR, 64 + 4 * source.randrange(8)))
        else:
            modrm = 0xC0 | source.randrange(64)
            prefix, operation = source.choice(_PREFIXES), source.choice(_OPERATIONS)
            parts.append(bytes.fromhex(f"{prefix}0f{operation}{modrm:02x}"))
    return b"".join(parts)


@pytest.mark.parametrize("seed", range(40))
def test_both_engines_end_alike(seed: int) -> None:
    source = Random(seed)
    code = _random_code(source)
    words = [
        source.choice((INITIAL, INITIAL, source.getrandbits(16) | MASKS, source.getrandbits(16)))
        for _ in range(8)
    ]
    registers = [
        sum(double(source.choice((0.1, 3.0, -1e300, 1e-310, 0.0, float("inf")))) << s
            for s in (0, 64))
        for _ in range(8)
    ]  # fmt: skip
    ends = []
    for engine in ENGINES:
        made = program(engine, *words)
        for number, word in enumerate(registers):
            made.state.set_xmm(number, word)
        ran = made.run(code)
        state = ran.state
        ends.append(
            (ran.vector, ran.done, state.mxcsr, ran.word(64, 32), *map(state.xmm, range(8)))
        )
    assert ends[0] == ends[1]
