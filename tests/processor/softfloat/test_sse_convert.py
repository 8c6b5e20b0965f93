"""The SSE, F16C and AVX-512 conversions, and ROUNDSS, against the host's processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from iced_x86 import Code, Instruction, Register

from tests.processor.softfloat.host import SseRecord, assemble, run_sse
from tests.processor.softfloat.mxcsr import describe, random_mxcsr, registers, soft
from tests.processor.softfloat.patterns import Source, count
from trapline.processor.softfloat import (
    F16,
    F32,
    F64,
    Context,
    Format,
    convert,
    from_integer,
    round_by_immediate,
    to_integer,
)

XMM0, XMM1, EAX, RAX = Register.XMM0, Register.XMM1, Register.EAX, Register.RAX


def has(feature: str) -> bool:
    """Whether the host's processor has the feature, by Linux's name for it."""
    return f" {feature} " in Path("/proc/cpuinfo").read_text().replace("\n", " ")


def records_for(form: Format, cases: int, lanes: int = 1) -> list[SseRecord]:
    """Random operands in XMM1, the special ones first."""
    source = Source(form)
    operands = source.specials + [around_integers(source) for _ in range(count(cases))]
    if lanes > 1:
        operands = [b | source.one() << form.width for b in operands]
    return [SseRecord(0, b, random_mxcsr(source, i % 4 > 0)) for i, b in enumerate(operands)]


def around_integers(source: Source) -> int:
    """Half of them near the limits of the integers, with some bits of fraction."""
    if source.random.random() < 0.5:
        return source.one()
    form = source.form
    width = source.random.choice((1, 2, 8, 31, 32, 63, 64))
    number = (1 << width) + source.random.randint(-3, 3)
    number = (number << 2) + source.random.randint(-3, 3)
    shifted = max(number, 1)
    exact = from_integer(F64, shifted, 80, Context(), signed=False) - (2 << 52)
    bits = convert(F64, form, exact, Context()) if form is not F64 else exact
    return bits | source.random.getrandbits(1) << form.sign_shift


def check(
    code: bytes,
    records: list[SseRecord],
    operation: Callable[[SseRecord, Context], int],
    register: str,
    width: int,
) -> None:
    for record, host in zip(records, run_sse(code, records), strict=True):
        got = soft(record.mxcsr, lambda context, r=record: operation(r, context))
        expected = None if host.faulted else getattr(host, register) & (1 << width) - 1
        assert got == (expected, host.mxcsr & 0x3F, host.faulted), describe(record)


FORMATS = {
    "cvtss2sd": (F32, F64, Code.CVTSS2SD_XMM_XMMM32),
    "cvtsd2ss": (F64, F32, Code.CVTSD2SS_XMM_XMMM64),
}


@pytest.mark.parametrize("name", FORMATS)
def test_conversion_between_formats_matches_the_host(name: str) -> None:
    source, target, code = FORMATS[name]
    check(
        registers(code),
        records_for(source, 8000),
        lambda r, context: convert(source, target, r.b, context),
        "xmm0",
        target.width,
    )


@pytest.mark.skipif(not has("f16c"), reason="the host has no F16C")
@pytest.mark.parametrize("immediate", range(8))
def test_narrowing_to_half_matches_the_host(immediate: int) -> None:
    """VCVTPS2PH: bit 2 of the immediate chooses MXCSR's rounding; one lane is not zero."""

    def narrow(record: SseRecord, context: Context) -> int:
        if not immediate & 4:
            context.rounding = immediate & 3
        return convert(F32, F16, record.b, context)

    code = assemble(
        Instruction.create_reg_reg_u32(Code.VEX_VCVTPS2PH_XMMM64_XMM_IMM8, XMM0, XMM1, immediate)
    )
    source, half = Source(F32), Source(F16, 2)
    operands = source.specials + [source.one() for _ in range(count(1000))]
    operands += [convert(F16, F32, half.one(), Context()) for _ in range(count(1000))]
    operands += [bits ^ 1 << source.random.randint(0, 13) for bits in operands[-1000:]]
    records = [SseRecord(0, b, random_mxcsr(source, i % 4 > 0)) for i, b in enumerate(operands)]
    check(code, records, narrow, "xmm0", 16)


@pytest.mark.skipif(not has("f16c"), reason="the host has no F16C")
def test_every_half_widens_as_on_the_host() -> None:
    source = Source(F16)
    records = [SseRecord(0, b, random_mxcsr(source, b % 4 > 0)) for b in range(1 << 16)]
    code = registers(Code.VEX_VCVTPH2PS_XMM_XMMM64)
    check(code, records, lambda r, context: convert(F16, F32, r.b, context), "xmm0", 32)


TO_INTEGER = {
    "cvtss2si32": (F32, 32, False, True, Code.CVTSS2SI_R32_XMMM32),
    "cvtss2si64": (F32, 64, False, True, Code.CVTSS2SI_R64_XMMM32),
    "cvttss2si32": (F32, 32, True, True, Code.CVTTSS2SI_R32_XMMM32),
    "cvttss2si64": (F32, 64, True, True, Code.CVTTSS2SI_R64_XMMM32),
    "cvtsd2si32": (F64, 32, False, True, Code.CVTSD2SI_R32_XMMM64),
    "cvtsd2si64": (F64, 64, False, True, Code.CVTSD2SI_R64_XMMM64),
    "cvttsd2si32": (F64, 32, True, True, Code.CVTTSD2SI_R32_XMMM64),
    "cvttsd2si64": (F64, 64, True, True, Code.CVTTSD2SI_R64_XMMM64),
    "cvtsd2usi32": (F64, 32, False, False, Code.EVEX_VCVTSD2USI_R32_XMMM64_ER),
    "cvtsd2usi64": (F64, 64, False, False, Code.EVEX_VCVTSD2USI_R64_XMMM64_ER),
    "cvttss2usi32": (F32, 32, True, False, Code.EVEX_VCVTTSS2USI_R32_XMMM32_SAE),
    "cvttss2usi64": (F32, 64, True, False, Code.EVEX_VCVTTSS2USI_R64_XMMM32_SAE),
}


@pytest.mark.parametrize("name", TO_INTEGER)
def test_conversion_to_integer_matches_the_host(name: str) -> None:
    form, width, truncate, signed, code = TO_INTEGER[name]
    if not signed and not has("avx512f"):
        pytest.skip("the host has no AVX-512")
    check(
        registers(code, EAX if width == 32 else RAX, XMM1),
        records_for(form, 6000),
        lambda r, context: to_integer(form, r.b, width, context, signed=signed, truncate=truncate),
        "rax",
        width,
    )


FROM_INTEGER = {
    "cvtsi2ss32": (F32, 32, True, Code.CVTSI2SS_XMM_RM32),
    "cvtsi2ss64": (F32, 64, True, Code.CVTSI2SS_XMM_RM64),
    "cvtsi2sd32": (F64, 32, True, Code.CVTSI2SD_XMM_RM32),
    "cvtsi2sd64": (F64, 64, True, Code.CVTSI2SD_XMM_RM64),
    "cvtusi2ss64": (F32, 64, False, Code.EVEX_VCVTUSI2SS_XMM_XMM_RM64_ER),
    "cvtusi2sd64": (F64, 64, False, Code.EVEX_VCVTUSI2SD_XMM_XMM_RM64_ER),
}


@pytest.mark.parametrize("name", FROM_INTEGER)
def test_conversion_from_integer_matches_the_host(name: str) -> None:
    form, width, signed, code = FROM_INTEGER[name]
    if not signed and not has("avx512f"):
        pytest.skip("the host has no AVX-512")
    source = Source(form)
    integers = [0, 1, (1 << width) - 1, 1 << width - 1, (1 << width - 1) - 1]
    for _ in range(count(4000)):
        bits = source.random.getrandbits(width)
        run = source.random.getrandbits(1) * ((1 << width) - 1)
        integers.append(bits >> source.random.randint(0, width) ^ run)
    records = [
        SseRecord(0, 0, random_mxcsr(source, i % 4 > 0), rax=integer)
        for i, integer in enumerate(integers)
    ]
    general = EAX if width == 32 else RAX
    check(
        registers(code, *([XMM0, general] if signed else [XMM0, XMM0, general])),
        records,
        lambda r, context: from_integer(form, r.rax, width, context, signed=signed),
        "xmm0",
        form.width,
    )


@pytest.mark.parametrize("immediate", range(16))
@pytest.mark.parametrize("form", [F32, F64], ids=str)
def test_rounding_to_integral_matches_the_host(form: Format, immediate: int) -> None:
    code = Code.ROUNDSS_XMM_XMMM32_IMM8 if form is F32 else Code.ROUNDSD_XMM_XMMM64_IMM8
    check(
        assemble(Instruction.create_reg_reg_u32(code, XMM0, XMM1, immediate)),
        records_for(form, 2000),
        lambda r, context: round_by_immediate(form, r.b, immediate, context),
        "xmm0",
        form.width,
    )
