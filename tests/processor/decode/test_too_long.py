"""Instructions of more than 15 bytes are #GP(0) (SDM 2A, 2.3.11), undefined ones within them #UD:
as the host's processor decides it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.against.compare import differences
from tests.against.engines import Engine, Interp, Jit
from tests.against.host import Host
from tests.against.layout import CODE, DATA, ENTRY, PAGE
from tests.against.state import Case, Fault, FloatState
from trapline.processor import decode

PREFIXES = (b"\x66", b"\x3e", b"\x67", b"\xf2", b"\xf3", b"\x48", b"\x66\xf3", b"\x48\x2e")
# With a ModRM byte and without, with an immediate, a displacement, escapes; then undefined ones.
OPCODES = (
    "90", "01 c0", "89 07", "83 c0 01", "0f af c0", "0f 38 00 c0", "66 0f 3a 0f c0 01",
    "b0 01", "8d 84 24 00 01 00 00", "c6 84 24 00 01 00 00 05",
    "0f 0b", "0f 04", "06", "d6", "fe d0", "ff f8", "d9 d1", "0f c7 07", "0f 38 ff c0",
    "0f 3a ff c0 00", "8d c0",
)  # fmt: skip


@pytest.fixture(params=[Interp, Jit])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = request.param()
    yield made
    made.close()


def case(code: bytes, entry: int = ENTRY) -> Case:
    registers = [DATA.linear + 0x100 + 64 * number for number in range(16)]
    return Case(code, entry, registers, 0, FloatState().pack())


def cases() -> list[Case]:
    """Each from one byte below the limit to two above."""
    made = []
    for text in OPCODES:
        opcode = bytes.fromhex(text)
        for prefixes in PREFIXES:
            for size in (14, 15, 16, 17):
                count = size - len(opcode)
                made.append(case((prefixes * count)[-count:] + opcode))
    return made


def test_what_is_too_long_is_what_the_host_finds_too_long(engine: Engine) -> None:
    made = cases()
    with Host() as host:
        answers = list(zip(made, host.run(made), strict=True))
    too_long = 0
    for one, expected in answers:
        assert differences(one, expected, engine.run_one(one).outcome) == [], one.code.hex(" ")
        too_long += expected.fault == Fault(13, 0)
    assert too_long >= len(PREFIXES) * len(OPCODES) * 2 - 8


def test_the_page_behind_does_not_matter(engine: Engine) -> None:
    """15 bytes are all that is fetched."""
    made = case(b"\x66" * 15, CODE.linear + PAGE - 15)
    assert engine.run_one(made).outcome.fault == Fault(13, 0)


@pytest.mark.parametrize("bitness", [16, 32, 64])
def test_the_limit_is_the_same_in_every_mode(bitness: int) -> None:
    for count in range(12, 18):
        found = decode(b"\x3e" * count + b"\x01\xc0" + bytes(8), 0, bitness)
        assert found is not None
        assert (found.is_too_long, found.name) == ((True, "") if count > 13 else (False, "add"))
        lock = decode(b"\xf0" * count + b"\x01\xc0" + bytes(8), 0, bitness)
        assert lock is not None
        assert (lock.is_too_long, lock.name) == (count > 13, "")


def test_an_instruction_cut_off_before_its_limit_is_not_decided() -> None:
    assert decode(b"\x66" * 14, 0) is None
