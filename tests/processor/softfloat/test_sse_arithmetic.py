"""SSE addition, multiplication, division, square root and FMA against the host's processor."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from iced_x86 import Code, Register

from tests.processor.softfloat.host import SseRecord, run_sse
from tests.processor.softfloat.mxcsr import describe, random_mxcsr, registers, soft
from tests.processor.softfloat.patterns import Source, count
from trapline.processor.softfloat import F32, F64, Context, Format, add, div, fma, mul, sqrt, sub

Operation = Callable[[Format, int, int, Context], int]

BINARY = {
    "addss": (F32, add, Code.ADDSS_XMM_XMMM32),
    "addsd": (F64, add, Code.ADDSD_XMM_XMMM64),
    "subss": (F32, sub, Code.SUBSS_XMM_XMMM32),
    "subsd": (F64, sub, Code.SUBSD_XMM_XMMM64),
    "mulss": (F32, mul, Code.MULSS_XMM_XMMM32),
    "mulsd": (F64, mul, Code.MULSD_XMM_XMMM64),
    "divss": (F32, div, Code.DIVSS_XMM_XMMM32),
    "divsd": (F64, div, Code.DIVSD_XMM_XMMM64),
}


def compare_binary(
    form: Format, operation: Operation, code: bytes, records: list[SseRecord]
) -> None:
    mask = (1 << form.width) - 1
    for record, host in zip(records, run_sse(code, records), strict=True):
        expected = None if host.faulted else host.xmm0 & mask
        got = soft(record.mxcsr, lambda context, r=record: operation(form, r.a, r.b, context))
        assert got == (expected, host.mxcsr & 0x3F, host.faulted), describe(record)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_binary_operation_matches_the_host(name: str, masked: bool) -> None:
    form, operation, code = BINARY[name]
    source = Source(form)
    records = []
    for _ in range(count(6000 if masked else 2000)):
        a, b = source.pair()
        records.append(SseRecord(a, b, random_mxcsr(source, masked)))
    compare_binary(form, operation, registers(code), records)


@pytest.mark.parametrize("name", BINARY)
def test_every_pair_of_special_operands(name: str) -> None:
    form, operation, code = BINARY[name]
    source = Source(form)
    pairs = product(source.specials, repeat=2)
    records = [SseRecord(a, b, random_mxcsr(source, True)) for a, b in pairs]
    compare_binary(form, operation, registers(code), records)


@pytest.mark.parametrize("form", [F32, F64], ids=str)
def test_square_root_matches_the_host(form: Format) -> None:
    code = Code.SQRTSS_XMM_XMMM32 if form is F32 else Code.SQRTSD_XMM_XMMM64
    source = Source(form)
    operands = source.specials + [source.one() for _ in range(count(6000))]
    records = [SseRecord(0, b, random_mxcsr(source, i % 4 > 0)) for i, b in enumerate(operands)]
    compare_binary(form, lambda f, _, b, context: sqrt(f, b, context), registers(code), records)


FUSED = {
    (F32, False, False): Code.VEX_VFMADD213SS_XMM_XMM_XMMM32,
    (F32, False, True): Code.VEX_VFMSUB213SS_XMM_XMM_XMMM32,
    (F32, True, False): Code.VEX_VFNMADD213SS_XMM_XMM_XMMM32,
    (F32, True, True): Code.VEX_VFNMSUB213SS_XMM_XMM_XMMM32,
    (F64, False, False): Code.VEX_VFMADD213SD_XMM_XMM_XMMM64,
    (F64, False, True): Code.VEX_VFMSUB213SD_XMM_XMM_XMMM64,
    (F64, True, False): Code.VEX_VFNMADD213SD_XMM_XMM_XMMM64,
    (F64, True, True): Code.VEX_VFNMSUB213SD_XMM_XMM_XMMM64,
}


@pytest.mark.parametrize("variant", FUSED, ids=lambda v: f"{v[0]}-{v[1]:d}{v[2]:d}")
def test_fused_multiply_add_matches_the_host(variant: tuple[Format, bool, bool]) -> None:
    """VFMADD213: the product is xmm1 * xmm0, the addend xmm2."""
    form, negate_product, negate_addend = variant
    source = Source(form)
    records = []
    for i in range(count(4000)):
        a, b = source.pair()
        c = source.pair()[i & 1]
        if i % 3 == 0:  # the product, or nearly so: cancellation
            c = mul(form, a, b, Context()) ^ source.random.getrandbits(2) ^ form.sign
        records.append(SseRecord(a, b, random_mxcsr(source, i % 4 > 0), c))
    code = registers(FUSED[variant], Register.XMM0, Register.XMM1, Register.XMM2)
    mask = (1 << form.width) - 1
    for record, host in zip(records, run_sse(code, records), strict=True):
        got = soft(
            record.mxcsr,
            lambda context, r=record: fma(
                form,
                r.b,
                r.a,
                r.c,
                context,
                negate_product=negate_product,
                negate_addend=negate_addend,
            ),
        )
        expected = None if host.faulted else host.xmm0 & mask
        assert got == (expected, host.mxcsr & 0x3F, host.faulted), describe(record)


PACKED = {
    "addps": (F32, add, Code.ADDPS_XMM_XMMM128),
    "mulps": (F32, mul, Code.MULPS_XMM_XMMM128),
    "divps": (F32, div, Code.DIVPS_XMM_XMMM128),
    "divpd": (F64, div, Code.DIVPD_XMM_XMMM128),
}


@pytest.mark.parametrize("name", PACKED)
def test_lanes_share_one_context(name: str) -> None:
    """An unmasked exception on one lane's operands hides what the other lanes' results raise."""
    form, operation, code = PACKED[name]
    source = Source(form)
    width = form.width
    shifts = range(0, 128, width)
    records = []
    for i in range(count(4000)):
        lanes = [source.pair() for _ in shifts]
        a = sum(pair[0] << shift for shift, pair in zip(shifts, lanes, strict=True))
        b = sum(pair[1] << shift for shift, pair in zip(shifts, lanes, strict=True))
        records.append(SseRecord(a, b, random_mxcsr(source, i % 4 == 0)))
    mask = (1 << width) - 1

    def packed(record: SseRecord, context: Context) -> int:
        return sum(
            operation(form, record.a >> shift & mask, record.b >> shift & mask, context) << shift
            for shift in shifts
        )

    for record, host in zip(records, run_sse(registers(code), records), strict=True):
        got = soft(record.mxcsr, lambda context, r=record: packed(r, context))
        expected = None if host.faulted else host.xmm0
        assert got == (expected, host.mxcsr & 0x3F, host.faulted), describe(record)
