"""x87 addition, multiplication, division and square root against the host's processor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from iced_x86 import Code, Instruction, Register

from tests.processor.softfloat.control_word import describe, outcome, random_control, soft
from tests.processor.softfloat.host import X87Record, assemble, memory, run_x87
from tests.processor.softfloat.patterns import Source, count
from trapline.processor.softfloat import (
    F32,
    F64,
    F80,
    Context,
    Format,
    add,
    div,
    mul,
    sqrt,
    sub,
    widen,
)

Operation = Callable[[int, int, Context], int]


def reverse(operation: Callable[[Format, int, int, Context], int]) -> Operation:
    return lambda a, b, context: operation(F80, b, a, context)


def forward(operation: Callable[[Format, int, int, Context], int]) -> Operation:
    return lambda a, b, context: operation(F80, a, b, context)


BINARY = {
    "fadd": (forward(add), Code.FADD_ST0_STI, Code.FADD_M32FP, Code.FADD_M64FP),
    "fsub": (forward(sub), Code.FSUB_ST0_STI, Code.FSUB_M32FP, Code.FSUB_M64FP),
    "fsubr": (reverse(sub), Code.FSUBR_ST0_STI, Code.FSUBR_M32FP, Code.FSUBR_M64FP),
    "fmul": (forward(mul), Code.FMUL_ST0_STI, Code.FMUL_M32FP, Code.FMUL_M64FP),
    "fdiv": (forward(div), Code.FDIV_ST0_STI, Code.FDIV_M32FP, Code.FDIV_M64FP),
    "fdivr": (reverse(div), Code.FDIVR_ST0_STI, Code.FDIVR_M32FP, Code.FDIVR_M64FP),
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_register_operation_matches_the_host(name: str, masked: bool) -> None:
    operation, code, _, _ = BINARY[name]
    source = Source(F80)
    pairs = [source.pair() for _ in range(count(10000 if masked else 5000))]
    pairs += [(a, b) for a in source.specials for b in source.specials]
    records = [X87Record(a, b, random_control(source, masked)) for a, b in pairs]
    instruction = Instruction.create_reg_reg(code, Register.ST0, Register.ST1)
    for record, host in zip(records, run_x87(assemble(instruction), records), strict=True):
        got = soft(record, lambda context, r=record: operation(r.a, r.b, context))
        assert got == outcome(host), describe(record)


@pytest.mark.parametrize("form", [F32, F64], ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_memory_operation_matches_the_host(name: str, form: Format) -> None:
    """A denormal in memory is a denormal operand though its F80 is normal."""
    operation, _, *codes = BINARY[name]
    source, narrow = Source(F80), Source(form, 2)
    pairs = [(source.one(), narrow.one()) for _ in range(count(4000))]
    pairs += [(a, b) for a in source.specials for b in narrow.specials]
    records = [
        X87Record(a, 0, random_control(source, i % 3 > 0), b) for i, (a, b) in enumerate(pairs)
    ]
    code = assemble(Instruction.create_mem(codes[0 if form is F32 else 1], memory()))
    for record, host in zip(records, run_x87(code, records), strict=True):
        got = soft(
            record,
            lambda context, r=record: operation(r.a, widen(form, r.memory, context), context),
        )
        assert got == outcome(host), describe(record)


def test_square_root_matches_the_host() -> None:
    source = Source(F80)
    operands = source.specials + [source.one() for _ in range(count(8000))]
    records = [X87Record(a, 0, random_control(source, i % 3 > 0)) for i, a in enumerate(operands)]
    code = assemble(Instruction.create(Code.FSQRT))
    for record, host in zip(records, run_x87(code, records), strict=True):
        got = soft(record, lambda context, r=record: sqrt(F80, r.a, context))
        assert got == outcome(host), describe(record)
