"""The transcendental instructions against the host's processor, which may be one unit off."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from iced_x86 import Code, Instruction

from tests.processor.softfloat.control_word import describe, random_control
from tests.processor.softfloat.host import X87Record, X87Result, assemble, run_x87
from tests.processor.softfloat.patterns import Source, count
from trapline.processor.softfloat import (
    BEFORE,
    F80,
    Context,
    f2xm1,
    fcos,
    fpatan,
    fptan,
    fsin,
    fsincos,
    fyl2x,
    fyl2xp1,
)

AMD = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
C2 = 0b0100

ONE = F80.bias << 64 | F80.one

Outcome = tuple[int, ...] | None

INSTRUCTIONS: dict[str, tuple[int, Callable[[int, int, Context], Outcome]]] = {
    "f2xm1": (Code.F2XM1, lambda a, b, context: (f2xm1(a, context),)),
    "fsin": (Code.FSIN, lambda a, b, context: single(fsin(a, context))),
    "fcos": (Code.FCOS, lambda a, b, context: single(fcos(a, context))),
    "fsincos": (Code.FSINCOS, lambda a, b, context: pushed(fsincos(a, context))),
    "fptan": (Code.FPTAN, lambda a, b, context: pushed(fptan(a, context))),
    "fyl2x": (Code.FYL2X, lambda a, b, context: (fyl2x(a, b, context),)),
    "fyl2xp1": (Code.FYL2XP1, lambda a, b, context: (fyl2xp1(a, b, context),)),
    "fpatan": (Code.FPATAN, lambda a, b, context: (fpatan(a, b, context),)),
}


def single(result: int | None) -> Outcome:
    return None if result is None else (result,)


def pushed(results: tuple[int, int] | None) -> Outcome:
    """From ST0 on down: what was pushed comes first."""
    return None if results is None else (results[1], results[0])


def position(bits: int) -> int:
    """An integer that grows by one from each number to the next."""
    magnitude = bits & ~F80.sign
    if magnitude >> 64:
        magnitude = (magnitude >> 64 << 63) + (magnitude & F80.one - 1)
    return -magnitude if bits & F80.sign else magnitude


def is_close(result: int, host: int) -> bool:
    """Equal, or neighbours of the same sign; zeros, infinities and NaNs have to be equal."""
    magnitudes = result & ~F80.sign, host & ~F80.sign
    if min(magnitudes) == 0 or max(magnitudes) >= F80.infinity:
        return result == host
    return (result ^ host) >> 79 == 0 and abs(position(result) - position(host)) <= 1


def is_defined(name: str, a: int) -> bool:
    """Whether the manual defines the result; if not, this follows AMD."""
    magnitude = a & ~F80.sign
    if name == "f2xm1":
        return magnitude <= ONE or magnitude >= F80.infinity
    if name == "fyl2xp1":
        return a <= F80.bias - 2 << 64 or not a & F80.sign or magnitude >= F80.infinity
    return True


def operands_for(name: str, source: Source) -> list[tuple[int, int]]:
    pairs = list(product(source.specials, repeat=2))
    pairs += [source.pair() for _ in range(count(1500))]
    for _ in range(count(1500)):
        a, b = source.pair()
        exponent = F80.bias + source.random.randint(-80, -1)
        if name in ("fsin", "fcos", "fsincos", "fptan"):
            exponent = F80.bias + source.random.randint(-40, 62)
        elif name == "fyl2x":
            exponent = source.random.choice((source.random.getrandbits(15) % F80.top, F80.bias))
            a &= ~F80.sign
        elif name == "fpatan":
            exponent = (b >> 64 & F80.top) + source.random.randint(-70, 70)
        a = a & (F80.sign | F80.mask) | F80.one | min(max(exponent, 1), F80.top - 1) << 64
        pairs.append((a, b))
    if AMD:
        return pairs
    return [(a, b) for a, b in pairs if is_defined(name, a)]


def check(name: str, record: X87Record, host: X87Result) -> None:
    _, operation = INSTRUCTIONS[name]
    context = Context.from_control_word(record.control)
    results = operation(record.a, record.b, context)
    if results is None:
        assert (host.codes, host.stack[0], host.flags) == (C2, record.a, 0), describe(record)
        return
    if context.settle() & BEFORE:
        results = (record.a,)
    assert host.codes & C2 == 0, describe(record)
    assert context.flags == host.flags, describe(record)
    for result, other in zip(results, host.stack, strict=False):
        assert is_close(result, other), f"{describe(record)} {result:#x} {other:#x}"


@pytest.mark.parametrize("name", INSTRUCTIONS)
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_result_is_within_one_unit_of_the_host(name: str, masked: bool) -> None:
    source = Source(F80)
    records = [
        X87Record(a, b, random_control(source, masked)) for a, b in operands_for(name, source)
    ]
    code = assemble(Instruction.create(INSTRUCTIONS[name][0]))
    for record, host in zip(records, run_x87(code, records), strict=True):
        check(name, record, host)
