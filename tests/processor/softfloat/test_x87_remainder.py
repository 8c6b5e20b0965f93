"""FPREM, FPREM1, FSCALE, FXTRACT, FRNDINT, FXAM and the constants against the host's processor."""

from __future__ import annotations

from itertools import product

import pytest
from iced_x86 import Code, Instruction

from tests.processor.softfloat.control_word import describe, outcome, random_control, soft
from tests.processor.softfloat.host import X87Record, assemble, run_x87
from tests.processor.softfloat.patterns import Source, count
from trapline.processor.softfloat import (
    BEFORE,
    F80,
    Context,
    constant,
    fprem,
    fprem1,
    fscale,
    fxam,
    fxtract,
    round_to_integral,
)


def pairs_for(source: Source, cases: int) -> list[tuple[int, int]]:
    pairs = list(product(source.specials, repeat=2))
    while len(pairs) < len(source.specials) ** 2 + count(cases):
        a, b = source.pair()
        if len(pairs) % 4 == 0:  # a few times b, or nearly
            distance = source.random.randint(-2, 66)
            exponent = min(max((b >> 64 & 0x7FFF) + distance, 0), 0x7FFE)
            a = a & ~(0x7FFF << 64) | exponent << 64
        pairs.append((a, b))
    return pairs


@pytest.mark.parametrize("name", ["fprem", "fprem1"])
def test_partial_remainder_matches_the_host(name: str) -> None:
    operation = fprem if name == "fprem" else fprem1
    code = assemble(Instruction.create(Code.FPREM if name == "fprem" else Code.FPREM1))
    source = Source(F80)
    pairs = pairs_for(source, 12000)
    records = [X87Record(a, b, random_control(source, i % 3 > 0)) for i, (a, b) in enumerate(pairs)]
    for record, host in zip(records, run_x87(code, records), strict=True):
        context = Context.from_control_word(record.control)
        left = operation(record.a, record.b, context)
        if context.settle() & BEFORE:
            got = (record.a, context.flags, 0)
        else:
            quotient = left.quotient
            codes = (
                (quotient & 2) << 2 | left.partial << 2 | (quotient & 1) << 1 | quotient >> 2 & 1
            )
            got = (left.result, context.flags, codes)
        assert got == (host.stack[0], host.flags, host.codes), describe(record)


def test_scaling_matches_the_host() -> None:
    source = Source(F80)
    pairs = pairs_for(source, 4000)
    for _ in range(count(8000)):
        number = source.random.randint(-70000, 70000)
        if source.random.random() < 0.5:
            number = source.random.randint(-70, 70)
        scaled = scale_operand(number, source.random.getrandbits(20))
        pairs.append((source.one(), scaled))
    records = [X87Record(a, b, random_control(source, i % 2 > 0)) for i, (a, b) in enumerate(pairs)]
    code = assemble(Instruction.create(Code.FSCALE))
    for record, host in zip(records, run_x87(code, records), strict=True):
        got = soft(record, lambda context, r=record: fscale(r.a, r.b, context))
        assert got == outcome(host), describe(record)


def scale_operand(number: int, fraction: int) -> int:
    """`number` and 20 bits of fraction as an F80."""
    magnitude = abs(number) << 20 | fraction
    if magnitude == 0:
        return 0
    length = magnitude.bit_length()
    exponent = F80.bias - 20 + length - 1
    return (number < 0) << 79 | exponent << 64 | magnitude << 64 - length


def test_extraction_matches_the_host() -> None:
    source = Source(F80)
    operands = source.specials + [source.one() for _ in range(count(3000))]
    records = [X87Record(a, 0, random_control(source, i % 3 > 0)) for i, a in enumerate(operands)]
    code = assemble(Instruction.create(Code.FXTRACT))
    for record, host in zip(records, run_x87(code, records), strict=True):
        context = Context.from_control_word(record.control)
        significand, exponent = fxtract(record.a, context)
        if context.settle() & BEFORE:
            assert (record.a, context.flags) == (host.stack[0], host.flags), describe(record)
            continue
        got = (significand, exponent, context.flags)
        assert got == (host.stack[0], host.stack[1], host.flags), describe(record)


def test_rounding_to_integral_matches_the_host() -> None:
    source = Source(F80)
    operands = source.specials + [source.one() for _ in range(count(6000))]
    records = [X87Record(a, 0, random_control(source, i % 3 > 0)) for i, a in enumerate(operands)]
    code = assemble(Instruction.create(Code.FRNDINT))
    for record, host in zip(records, run_x87(code, records), strict=True):
        got = soft(record, lambda context, r=record: round_to_integral(F80, r.a, context))
        assert got == outcome(host), describe(record)


def test_examination_matches_the_host() -> None:
    source = Source(F80)
    operands = source.specials + [source.one() for _ in range(count(2000))]
    records = [X87Record(a, 0, 0x33F) for a in operands]
    code = assemble(Instruction.create(Code.FXAM))
    for record, host in zip(records, run_x87(code, records), strict=True):
        assert fxam(record.a) == host.codes, describe(record)


CONSTANTS = {
    "fld1": Code.FLD1,
    "fldl2t": Code.FLDL2T,
    "fldl2e": Code.FLDL2E,
    "fldpi": Code.FLDPI,
    "fldlg2": Code.FLDLG2,
    "fldln2": Code.FLDLN2,
    "fldz": Code.FLDZ,
}


@pytest.mark.parametrize("mnemonic", CONSTANTS)
def test_constant_matches_the_host(mnemonic: str) -> None:
    controls = [rounding << 10 | pc << 8 | 0x3F for rounding in range(4) for pc in (0, 2, 3)]
    records = [X87Record(0, 0, control) for control in controls]
    code = assemble(Instruction.create(CONSTANTS[mnemonic]))
    for record, host in zip(records, run_x87(code, records), strict=True):
        got = soft(record, lambda context: constant(mnemonic, context))
        assert got == outcome(host), describe(record)
