"""CMPSS, COMISS, UCOMISS, MINSS and MAXSS against the host's processor."""

from __future__ import annotations

from itertools import product

import pytest
from iced_x86 import Code, Instruction, Register

from tests.processor.softfloat.host import SseRecord, assemble, run_sse
from tests.processor.softfloat.mxcsr import describe, random_mxcsr, registers, soft
from tests.processor.softfloat.patterns import Source, count
from trapline.processor.softfloat import (
    F32,
    F64,
    Format,
    Relation,
    compare,
    holds,
    maximum,
    minimum,
)

XMM0, XMM1 = Register.XMM0, Register.XMM1


def records_for(form: Format, cases: int) -> list[SseRecord]:
    source = Source(form)
    pairs = list(product(source.specials, repeat=2))
    while len(pairs) < count(cases):
        a, b = source.pair()
        pairs.append((a, source.random.choice((b, a, a ^ 1, a ^ form.sign))))
    return [SseRecord(a, b, random_mxcsr(source, i % 4 > 0)) for i, (a, b) in enumerate(pairs)]


@pytest.mark.parametrize("predicate", range(32))
@pytest.mark.parametrize("form", [F32, F64], ids=str)
def test_predicate_matches_the_host(form: Format, predicate: int) -> None:
    if predicate < 8:
        code = Code.CMPSS_XMM_XMMM32_IMM8 if form is F32 else Code.CMPSD_XMM_XMMM64_IMM8
        instruction = Instruction.create_reg_reg_u32(code, XMM0, XMM1, predicate)
    else:
        code = Code.VEX_VCMPSS_XMM_XMM_XMMM32_IMM8
        if form is F64:
            code = Code.VEX_VCMPSD_XMM_XMM_XMMM64_IMM8
        instruction = Instruction.create_reg_reg_reg_u32(code, XMM0, XMM0, XMM1, predicate)
    records = records_for(form, 2000)
    for record, host in zip(records, run_sse(assemble(instruction), records), strict=True):
        got = soft(
            record.mxcsr, lambda context, r=record: holds(form, r.a, r.b, predicate, context)
        )
        expected = None if host.faulted else host.xmm0 & 1 == 1
        assert got == (expected, host.mxcsr & 0x3F, host.faulted), describe(record)


# ZF, PF, CF as COMISS sets them (SDM 2, "COMISS").
EFLAGS = {
    Relation.UNORDERED: 0x45,
    Relation.GREATER: 0x00,
    Relation.LESS: 0x01,
    Relation.EQUAL: 0x40,
}
COMPARISONS = {
    "comiss": (F32, True, Code.COMISS_XMM_XMMM32),
    "comisd": (F64, True, Code.COMISD_XMM_XMMM64),
    "ucomiss": (F32, False, Code.UCOMISS_XMM_XMMM32),
    "ucomisd": (F64, False, Code.UCOMISD_XMM_XMMM64),
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_relation_matches_the_host(name: str) -> None:
    form, signalling, code = COMPARISONS[name]
    records = records_for(form, 6000)
    for record, host in zip(records, run_sse(registers(code), records), strict=True):
        got = soft(
            record.mxcsr,
            lambda context, r=record: EFLAGS[
                compare(form, r.a, r.b, context, signalling=signalling)
            ],
        )
        expected = None if host.faulted else host.rflags & 0x45
        assert got == (expected, host.mxcsr & 0x3F, host.faulted), describe(record)


PICKS = {
    "minss": (F32, minimum, Code.MINSS_XMM_XMMM32),
    "minsd": (F64, minimum, Code.MINSD_XMM_XMMM64),
    "maxss": (F32, maximum, Code.MAXSS_XMM_XMMM32),
    "maxsd": (F64, maximum, Code.MAXSD_XMM_XMMM64),
}


@pytest.mark.parametrize("name", PICKS)
def test_minimum_and_maximum_match_the_host(name: str) -> None:
    form, operation, code = PICKS[name]
    records = records_for(form, 6000)
    for record, host in zip(records, run_sse(registers(code), records), strict=True):
        got = soft(record.mxcsr, lambda context, r=record: operation(form, r.a, r.b, context))
        expected = None if host.faulted else host.xmm0 & (1 << form.width) - 1
        assert got == (expected, host.mxcsr & 0x3F, host.faulted), describe(record)
