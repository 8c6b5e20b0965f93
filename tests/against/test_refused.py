"""What no processor of ours implements raises #UD under its name, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.against.compare import differences
from tests.against.engines import Engine, Interp, Jit
from tests.against.layout import DATA, ENTRY
from tests.against.state import Case, Fault, FloatState, Outcome

# By extension: name and bytes; a memory operand is at [RDI].
FOREIGN = {
    "AVX": ("vaddps", "c5 f8 58 c0"),
    "AVX in memory": ("vmovups", "c5 fc 10 07"),
    "AVX2": ("vpaddd", "c5 fd fe c1"),
    "AVX-512": ("vaddps", "62 f1 7c 48 58 c1"),
    "AVX-512 masks": ("kmovw", "c5 f8 92 c8"),
    "FMA": ("vfmadd213ps", "c4 e2 79 a8 c1"),
    "F16C": ("vcvtph2ps", "c4 e2 79 13 c1"),
    "BMI1": ("andn", "c4 e2 78 f2 c1"),
    "BMI2": ("pdep", "c4 e2 7b f5 c1"),
    "ADX": ("adcx", "66 0f 38 f6 c1"),
    "AES": ("aesenc", "66 0f 38 dc c1"),
    "CLMUL": ("pclmulqdq", "66 0f 3a 44 c1 00"),
    "SHA": ("sha1msg1", "0f 38 c9 c1"),
    "GFNI": ("gf2p8mulb", "66 0f 38 cf c1"),
    "MOVBE": ("movbe", "0f 38 f0 07"),
    "RDRAND": ("rdrand", "0f c7 f0"),
    "RDSEED": ("rdseed", "0f c7 f8"),
    "XSAVEOPT": ("xsaveopt", "0f ae 37"),
    "XSAVEC": ("xsavec", "0f c7 27"),
    "CLWB": ("clwb", "66 0f ae 37"),
    "SSE4A": ("extrq", "66 0f 79 c1"),
    "SSE4A in memory": ("movntss", "f3 0f 2b 07"),
    "3DNow!": ("pfadd", "0f 0f c1 9e"),
    "XOP": ("vprotb", "8f e9 78 90 c1"),
    "FMA4": ("vfmaddps", "c4 e3 f9 68 c1 20"),
    "TBM": ("blcfill", "8f e9 78 01 c9"),
    "CLZERO": ("clzero", "0f 01 fc"),
    "MONITORX": ("monitorx", "0f 01 fa"),
    "RTM": ("xbegin", "c7 f8 00 00 00 00"),
    "WAITPKG": ("umwait", "f2 0f ae f0"),
    "MOVDIRI": ("movdiri", "0f 38 f9 07"),
    "MOVDIR64B": ("movdir64b", "66 0f 38 f8 07"),
    "ENQCMD": ("enqcmd", "f2 0f 38 f8 07"),
    "CET": ("incsspd", "f3 0f ae e8"),
    "PTWRITE": ("ptwrite", "f3 0f ae e0"),
    "AMX": ("tilerelease", "c4 e2 78 49 c0"),
    "Key Locker": ("loadiwkey", "f3 0f 38 dc c1"),
    "RAO-INT": ("aadd", "0f 38 fc 07"),
    "CMPCCXADD": ("cmpbexadd", "c4 e2 79 e6 07"),
    "SERIALIZE": ("serialize", "0f 01 e8"),
    "HRESET": ("hreset", "f3 0f 3a f0 c0 00"),
    "UINTR": ("senduipi", "f3 0f c7 f0"),
    "SVM": ("invlpgb", "0f 01 fe"),
}
NOTHING = (
    "0f 04", "0f 0a", "0f 24 c0", "0f 36", "0f c7 07", "ff ff", "fe d0", "d9 d1", "0f 0b",
    "0f b9 c0", "f0 01 c0", "f0 90", "f0 8b 07", "f0 0f a3 07", "06", "60", "d6",
    # VMX and SVM, without a hypervisor below.
    "0f 01 c1", "0f 01 c2", "0f c7 37", "0f 78 07", "0f 01 d8", "0f 01 d9", "0f 01 dc",
    "0f 01 c8", "0f 01 c9",
)  # fmt: skip
UNDEFINED = Fault(6)


@pytest.fixture(scope="module", params=[Interp, Jit])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = request.param()
    yield made
    made.close()


def case(code: str) -> Case:
    registers = [DATA.linear + 0x100 + 64 * number for number in range(16)]
    return Case(bytes.fromhex(code), ENTRY, registers, 0, FloatState().pack())


def refusal(made: Case, memory: dict[int, bytes], flags: int) -> Outcome:
    return Outcome(made.registers, made.entry, flags, made.fx, memory, UNDEFINED)


@pytest.mark.parametrize("extension", FOREIGN)
def test_a_foreign_instruction_is_refused_by_name(extension: str, engine: Engine) -> None:
    name, code = FOREIGN[extension]
    made = case(code)
    answer = engine.run_one(made)
    assert answer.undefined == name
    got = answer.outcome
    assert differences(made, refusal(made, {}, 0x202), got) == []


@pytest.mark.parametrize("code", NOTHING)
def test_what_means_nothing_is_undefined_and_changes_nothing(code: str, engine: Engine) -> None:
    made = case(code)
    got = engine.run_one(made).outcome
    assert differences(made, refusal(made, {}, 0x202), got) == []
