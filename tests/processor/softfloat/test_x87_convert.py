"""x87 loads, stores and comparisons, binary and decimal, against the host's processor."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from iced_x86 import Code, Instruction, Register

from tests.processor.softfloat.control_word import describe, outcome, random_control, soft
from tests.processor.softfloat.host import X87Record, assemble, memory, run_x87
from tests.processor.softfloat.patterns import Source, count
from trapline.processor.softfloat import (
    BEFORE,
    F32,
    F64,
    F80,
    IE,
    OE,
    UE,
    Context,
    Format,
    Relation,
    compare,
    convert,
    fbld,
    fbstp,
    from_integer,
    to_integer,
    widen,
)


@pytest.mark.parametrize("form", [F32, F64], ids=str)
def test_load_matches_the_host(form: Format) -> None:
    """An unmasked DE is reported, but it does not keep the number from being pushed."""
    source = Source(form)
    operands = source.specials + [source.one() for _ in range(count(4000))]
    records = [
        X87Record(0, 0, random_control(source, i % 3 > 0), m) for i, m in enumerate(operands)
    ]
    code = Code.FLD_M32FP if form is F32 else Code.FLD_M64FP
    code = assemble(Instruction.create_mem(code, memory()))
    for record, host in zip(records, run_x87(code, records), strict=True):
        context = Context.from_control_word(record.control)
        result = convert(form, F80, record.memory, context)
        if context.settle() & IE:
            result = record.a
        assert (result, context.flags, 0) == outcome(host), describe(record)


def near_edges_of(form: Format, source: Source) -> int:
    """An F80 that is near the range or the precision of a narrower format."""
    bits = source.one()
    edge = source.random.choice((form.bias, 1 - form.bias, 1 - form.bias - form.precision, 0))
    exponent = F80.bias + edge + source.random.randint(-4, 4)
    significand = 1 << 63 | bits
    if source.random.random() < 0.5:  # half a unit, or nearly so
        kept = 64 - source.random.randint(1, form.precision + 1)
        significand = significand >> kept << kept
        significand += source.random.choice((-1, 0, 1)) + (1 << kept - 1)
    return bits >> 79 << 79 | exponent << 64 | significand & F80.mask | F80.one


@pytest.mark.parametrize("form", [F32, F64], ids=str)
def test_store_matches_the_host(form: Format) -> None:
    """Nothing is stored if an unmasked exception other than PE comes up."""
    source = Source(F80)
    operands = source.specials + [source.one() for _ in range(count(4000))]
    operands += [near_edges_of(form, source) for _ in range(count(8000))]
    before = source.random.getrandbits(form.width)
    records = [
        X87Record(a, 0, random_control(source, i % 3 > 0), before) for i, a in enumerate(operands)
    ]
    code = Code.FST_M32FP if form is F32 else Code.FST_M64FP
    code = assemble(Instruction.create_mem(code, memory()))
    check_store(records, code, lambda a, context: convert(F80, form, a, context))


def check_store(
    records: list[X87Record], code: bytes, operation: Callable[[int, Context], int]
) -> None:
    for record, host in zip(records, run_x87(code, records), strict=True):
        context = Context.from_control_word(record.control)
        result = operation(record.a, context)
        if context.settle() & (BEFORE | OE | UE):
            result = record.memory
        got = (result, context.flags, int(context.rounded_up))
        assert got == (host.memory, host.flags, host.c1), describe(record)


INTEGERS = {
    "fist16": (16, False, Code.FIST_M16INT),
    "fist32": (32, False, Code.FIST_M32INT),
    "fistp64": (64, False, Code.FISTP_M64INT),
    "fisttp16": (16, True, Code.FISTTP_M16INT),
    "fisttp32": (32, True, Code.FISTTP_M32INT),
    "fisttp64": (64, True, Code.FISTTP_M64INT),
}


def near_integer(source: Source, limit: int) -> int:
    """An F80 near an integer, or near `limit`."""
    number = (limit << 3) + source.random.randint(-20, 20)
    if source.random.random() < 0.5:
        number = source.random.getrandbits(source.random.randint(1, 67))
    if number <= 0:
        return 0
    bits = from_integer(
        F80, number >> max(number.bit_length() - 64, 0), 64, Context(), signed=False
    )
    bits += max(number.bit_length() - 64, 0) - 3 << 64
    return bits | source.random.getrandbits(1) << 79


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_store_matches_the_host(name: str) -> None:
    width, truncate, code = INTEGERS[name]
    source = Source(F80)
    operands = source.specials + [source.one() for _ in range(count(2000))]
    operands += [near_integer(source, 1 << width - 1) for _ in range(count(4000))]
    records = [
        X87Record(a, 0, random_control(source, i % 3 > 0), 0x1234) for i, a in enumerate(operands)
    ]
    check_store(
        records,
        assemble(Instruction.create_mem(code, memory())),
        lambda a, context: to_integer(F80, a, width, context, truncate=truncate),
    )


@pytest.mark.parametrize("width", [16, 32, 64])
def test_integer_load_matches_the_host(width: int) -> None:
    code = {16: Code.FILD_M16INT, 32: Code.FILD_M32INT, 64: Code.FILD_M64INT}[width]
    source = Source(F80)
    integers = [0, 1, 1 << width - 1, (1 << width) - 1, (1 << width - 1) - 1]
    for _ in range(count(1000)):
        integers.append(source.random.getrandbits(width) >> source.random.randint(0, width))
    records = [X87Record(0, 0, random_control(source, True), m) for m in integers]
    code = assemble(Instruction.create_mem(code, memory()))
    for record, host in zip(records, run_x87(code, records), strict=True):
        got = soft(record, lambda context, r=record: from_integer(F80, r.memory, width, context))
        assert got == outcome(host), describe(record)


def test_decimal_store_matches_the_host() -> None:
    source = Source(F80)
    operands = source.specials + [source.one() for _ in range(count(2000))]
    operands += [near_integer(source, 10**18) for _ in range(count(4000))]
    records = [
        X87Record(a, 0, random_control(source, i % 3 > 0), 0x1234) for i, a in enumerate(operands)
    ]
    check_store(records, assemble(Instruction.create_mem(Code.FBSTP_M80BCD, memory())), fbstp)


def test_decimal_load_matches_the_host() -> None:
    source = Source(F80)
    patterns = [0, 1 << 79, 0x7F << 72, 0x80123456789012345678]
    for _ in range(count(1000)):
        number = source.random.getrandbits(60) % 10**18
        patterns.append(source.random.getrandbits(1) << 79 | int(str(number), 16))
    records = [X87Record(0, 0, 0x33F, m) for m in patterns]
    code = assemble(Instruction.create_mem(Code.FBLD_M80BCD, memory()))
    for record, host in zip(records, run_x87(code, records), strict=True):
        assert (fbld(record.memory), 0) == (host.stack[0], host.flags), describe(record)


# C3, C2, C0 as bits 3, 2 and 0 (SDM 2, "FCOM").
CODES = {
    Relation.GREATER: 0b0000,
    Relation.LESS: 0b0001,
    Relation.EQUAL: 0b1000,
    Relation.UNORDERED: 0b1101,
}


@pytest.mark.parametrize("signalling", [True, False], ids=["fcom", "fucom"])
def test_comparison_matches_the_host(signalling: bool) -> None:
    source = Source(F80)
    pairs = list(product(source.specials, repeat=2))
    for _ in range(count(4000)):
        a, b = source.pair()
        pairs.append((a, source.random.choice((b, a, a ^ 1, a ^ F80.sign))))
    records = [X87Record(a, b, random_control(source, i % 3 > 0)) for i, (a, b) in enumerate(pairs)]
    code = Code.FCOM_ST0_STI if signalling else Code.FUCOM_ST0_STI
    code = assemble(Instruction.create_reg_reg(code, Register.ST0, Register.ST1))
    for record, host in zip(records, run_x87(code, records), strict=True):
        context = Context.from_control_word(record.control)
        codes = CODES[compare(F80, record.a, record.b, context, signalling=signalling)]
        if context.settle():
            codes = host.codes
        assert (codes, context.flags) == (host.codes, host.flags), describe(record)


@pytest.mark.parametrize("form", [F32, F64], ids=str)
def test_comparison_with_memory_matches_the_host(form: Format) -> None:
    source, narrow = Source(F80), Source(form, 2)
    pairs = list(product(source.specials, narrow.specials))
    for _ in range(count(3000)):
        m = narrow.one()
        a = source.random.choice((source.one(), convert(form, F80, m, Context())))
        pairs.append((a, m))
    records = [
        X87Record(a, 0, random_control(source, i % 3 > 0), m) for i, (a, m) in enumerate(pairs)
    ]
    code = Code.FCOM_M32FP if form is F32 else Code.FCOM_M64FP
    code = assemble(Instruction.create_mem(code, memory()))
    for record, host in zip(records, run_x87(code, records), strict=True):
        context = Context.from_control_word(record.control)
        second = widen(form, record.memory, context)
        codes = CODES[compare(F80, record.a, second, context, signalling=True)]
        if context.settle():
            codes = host.codes
        assert (codes, context.flags) == (host.codes, host.flags), describe(record)
