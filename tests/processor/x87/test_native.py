"""What native code does itself, and that the host's own x87 state neither leaks in nor out."""

from __future__ import annotations

import ctypes
from random import Random

import pytest

from tests.processor.jit.flat import CODE, UD2, load_code, run_to_fault
from tests.processor.language.forms import every_form
from tests.processor.x87.unit import (
    DENORMAL,
    INFINITY,
    LARGEST,
    MASKED,
    PE,
    QUIET,
    SIGNALLING,
    TINIEST,
    UE,
    bits,
    done,
    prepare,
)
from trapline.processor.language import INSTRUCTIONS
from trapline.processor.state import OFFSET, X87_OFFSET

# All of it but saving and restoring everything, which is longer than the bounce buffer.
NATIVE = [
    "d907", "dd07", "db2f", "d9c1", "d917", "dd17", "d91f", "dd1f", "db3f", "ddd1", "ddd9", "df07",
    "db07", "df2f", "df17", "db17", "df1f", "db1f", "df3f", "df0f", "db0f", "dd0f", "df27", "df37",
    "d9c9", "d807", "dc0f", "d8e1", "dce9", "dec1", "def9", "da07", "de37", "d9fa", "d9e0", "d9e1",
    "d9fc", "d9fd", "d9f4", "d9f8", "d9f5", "d8d1", "d817", "dc1f", "ded9", "dde1", "dae9", "de17",
    "da1f", "dbf1", "dff1", "dbe9", "dfe9", "d9e4", "d9e5", "dac1", "dbd9", "d9e8", "d9e9", "d9ea",
    "d9eb", "d9ec", "d9ed", "d9ee", "d9f0", "d9f1", "d9f2", "d9f3", "d9f9", "d9fb", "d9fe", "d9ff",
    "d92f", "d93f", "dfe0", "dd3f", "d937", "d927", "dbe3", "dbe2", "9b", "d9f6", "d9f7", "ddc1",
    "dfc1", "d9d0", "dbe0",
]  # fmt: skip


def step(engine: str, code: str, *args: object, **slots: int) -> bool:
    core = prepare("jit", *args, **slots)  # type: ignore[arg-type]
    load_code(core, bytes.fromhex(code) + UD2)
    core.state.rip = CODE
    return core.step_natively()


@pytest.mark.parametrize("code", NATIVE)
def test_native_code_does_it(code: str) -> None:
    memory = MASKED.to_bytes(2, "little") + bytes(26)
    assert step("jit", code, [0.5, 1.0, 2.0], memory)


@pytest.mark.parametrize(
    "code, slots",
    [
        ("dd37", {}), ("dd27", {}), ("d8c4", {}), ("dec4", {}), ("d92f", {}),
        ("d8c1", {"fcw": 0x37E}), ("d8c1", {"fcw": 0x35F}),
    ],
)  # fmt: skip
def test_the_reference_engine_does_what_is_rare(code: str, slots: dict[str, int]) -> None:
    """Saving all, stack faults, and whatever runs with, or loads, an unmasked exception."""
    assert not step("jit", code, [0.5, 1.0], b"\x7e\x03" + bytes(106), **slots)


def test_every_x87_encoding_is_described() -> None:
    """Whatever the decoder makes of the opcodes D8 to DF."""
    for bitness in (16, 32, 64):
        forms = every_form(bitness).items()
        found = {form.name for form, code in forms if 0xD8 <= code[0] <= 0xDF}
        assert len(found) > 80 and found <= set(INSTRUCTIONS)


def test_a_flag_is_that_of_the_operation_even_if_the_host_has_it_up() -> None:
    """1 / 3 is inexact; after FNCLEX, 1 + 1 is not."""
    code = "d8f1 dbe2 d8c0 dfe0"
    for after in (done(name, code, [1.0, 3.0]) for name in ("interp", "jit")):
        assert (after.flags, after.rax & 0x3F) == (0, 0)


def test_the_hosts_own_flags_do_not_become_the_guests() -> None:
    pi = ctypes.CDLL(None).strtold
    pi.restype = ctypes.c_longdouble
    assert float(pi(b"0.1", None)) == 0.1  # inexact, on the host's x87
    after = done("jit", "d8c1", [1.0, 2.0])
    assert after.flags == 0


def test_flags_gather(engine: str) -> None:
    code = "d8f1" + "ddd8" + "d8c9"  # 1 / 3, pop, tiniest * tiniest
    after = done(engine, code, [1.0, TINIEST, TINIEST])
    assert after.flags == PE | UE


def test_a_control_word_is_there_for_the_next_instruction(engine: str) -> None:
    """One run of native code rounds 1.5 in all four ways, and 1 / 3 to three precisions."""
    words = [(0x37F | rounding << 10).to_bytes(2, "little") for rounding in range(4)]
    code = "".join(f"d96f{2 * i:02x} df57{16 + 2 * i:02x}" for i in range(4))  # fldcw, fist
    after = done(engine, code, [1.5], b"".join(words))
    found = [int.from_bytes(after.memory(2, 16 + 2 * i), "little") for i in range(4)]
    assert found == [2, 1, 2, 1]
    words = [(0x7F | precision << 8).to_bytes(2, "little") for precision in (0, 2, 3)]
    code = "".join(f"d96f{2 * i:02x} d9e8 d8f1 db7f{16 * (i + 1):02x}" for i in range(3))
    after = done(engine, code, [3.0], b"".join(words))
    results = [int.from_bytes(after.memory(10, 16 * i), "little") for i in (1, 2, 3)]
    assert results == [0x3FFDAAAAAB0000000000, 0x3FFDAAAAAAAAAAAAA800, 0x3FFDAAAAAAAAAAAAAAAB]


def test_the_host_has_its_control_word_back() -> None:
    done("jit", "d92f d8f1", [1.0, 3.0], b"\x7f\x0c")  # towards zero, 24 bits
    strtold = ctypes.CDLL(None).strtold
    strtold.restype = ctypes.c_longdouble
    assert float(strtold(b"0.7", None)) == 0.7


def test_a_loop_stays_native() -> None:
    core = prepare("jit", [0.0], bits(1.0).to_bytes(10, "little"), rcx=1000)
    # fld tbyte [rdi]; faddp; dec ecx; jnz
    load_code(core, bytes.fromhex("db2f dec1 ffc9 75f8") + UD2)
    run_to_fault(core)
    assert core.state.x87(0) == bits(1000.0)
    assert core.engine is not None and core.engine.entries < 10


ULPS = 1


@pytest.mark.parametrize("code", ["d9f0", "d9f1", "d9f2", "d9f3", "d9f9", "d9fb", "d9fe", "d9ff"])
@pytest.mark.parametrize("first", [0.25, 0.1, -0.2, 1e-5])
def test_transcendental_results_differ_in_the_last_bit_at_most(code: str, first: float) -> None:
    if code == "d9f1":
        first = abs(first)
    interp, jit = (done(name, code, [first, 3.0]) for name in ("interp", "jit"))
    assert (interp.top, interp.ftw) == (jit.top, jit.ftw)
    for index in range(2):
        assert abs(interp.bits(index) - jit.bits(index)) <= ULPS


NUMBERS = [
    0.0, -0.0, 1.0, -1.0, 1.5, 3.0, 1 / 3, 1e300, 2.0**63, -(2.0**31), 1e-300, INFINITY, DENORMAL,
    QUIET, SIGNALLING, LARGEST, TINIEST, bits(float("-inf")),
]  # fmt: skip
CONTROL_WORDS = [0x37F, 0x27F, 0x07F, 0x77F, 0xB7F, 0xF7F, 0xC7F]
STEPS = [code for code in NATIVE if code not in ("d92f", "d927", "dfe0")]
TRANSCENDENTAL = {"d9f0", "d9f1", "d9f2", "d9f3", "d9f9", "d9fb", "d9fe", "d9ff"}
_X87 = slice(X87_OFFSET, X87_OFFSET + 128)
_SLOTS = slice(OFFSET["fcw"], OFFSET["fds"] + 8)


def program(source: Random) -> str:
    """Anything in a row, with loads, pops and FFREE often enough for a stack that lives."""
    often = ["d907", "dd07", "db2f", "df2f", "d9e8", "d9eb", "ddd8", "ddd9", "d9f7", "ddc7", "ddc6"]
    chosen = [code for code in STEPS if code not in TRANSCENDENTAL]
    return " ".join(source.choice(often if source.random() < 0.4 else chosen) for _ in range(25))


@pytest.mark.parametrize("seed", range(60))
def test_programs_end_alike_on_both_engines(seed: int) -> None:
    """In one run of native code, with its flags, codes, tags and pointers."""
    source = Random(seed)
    code = program(source)
    stack = [source.choice([None, *NUMBERS]) for _ in range(8)]
    memory = bits(source.uniform(-100, 100)).to_bytes(10, "little") + bytes(100)
    slots = {"fcw": source.choice(CONTROL_WORDS), "fsw": source.randrange(8) << 11}
    found = []
    for engine in ("interp", "jit"):
        after = done(engine, code, stack, memory, **slots)
        state = after.state
        found.append(
            (state.bytes[_X87].tobytes(), state.bytes[_SLOTS].tobytes(), after.memory(128),
             after.rflags, after.rax)
        )  # fmt: skip
    assert found[0] == found[1], code
