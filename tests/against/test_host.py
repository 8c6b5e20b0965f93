"""The oracle itself: known answers of the host's processor, and what it refuses to execute."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.against.host import Host
from tests.against.layout import (
    CODE,
    DATA,
    ENTRY,
    FS_BASE,
    GS_BASE,
    HIGH,
    NON_CANONICAL,
    READ_ONLY,
    UNMAPPED,
    background,
    offset_of,
)
from tests.against.safety import Unsafe
from tests.against.state import (
    AC,
    CF,
    DF,
    FLAGS,
    ID,
    NT,
    NUMBER,
    OF,
    PF,
    STATUS,
    TF,
    Case,
    Fault,
    FloatState,
    Outcome,
)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as running:
        yield running


def case(code: str, **given: Any) -> Case:
    registers = [0] * 16
    for name in list(given):
        if name in NUMBER:
            registers[NUMBER[name]] = given.pop(name)
    fx = FloatState(**given.pop("fx", {})).pack()
    entry, flags = given.pop("entry", ENTRY), given.pop("flags", 0)
    return Case(bytes.fromhex(code), entry, registers, flags, fx, **given)


def one(host: Host, code: str, **given: Any) -> Outcome:
    return host.run([case(code, **given)])[0]


def word(linear: int, size: int = 8) -> bytes:
    start = offset_of(linear)
    assert start is not None
    return background()[start : start + size]


def test_add_wraps_and_sets_carry(host: Host) -> None:
    done = one(host, "48 01 d8", rax=(1 << 64) - 1, rbx=1)
    assert (done.registers[0], done.registers[3], done.rip) == (0, 1, ENTRY + 3)
    assert done.flags & STATUS == 0x55  # CF PF AF ZF
    assert (done.memory, done.fault, done.hung) == ({}, None, False)


def test_a_store_across_eight_bytes_is_reported_whole(host: Host) -> None:
    linear = DATA.linear + 0x105
    done = one(host, "89 07", rax=0x4433_2211, rdi=linear)
    low, high = word(linear - 5), word(linear + 3)
    assert done.memory == {
        linear - 5: low[:5] + b"\x11\x22\x33",
        linear + 3: b"\x44" + high[1:],
    }


def test_the_background_is_back_for_the_next_case(host: Host) -> None:
    linear = DATA.linear + 0x2C8
    written, read = host.run(
        [
            case("48 89 07", rax=1, rdi=linear, memory=[(linear + 8, bytes(8))]),
            case("48 8b 07", rdi=linear),
        ]
    )
    assert len(written.memory) == 2
    assert read.registers[0].to_bytes(8, "little") == word(linear)
    assert read.memory == {}


@pytest.mark.parametrize(
    "code, linear, error_code, cr2",
    [
        ("48 8b 07", UNMAPPED, 4, UNMAPPED),
        ("48 89 07", UNMAPPED, 6, UNMAPPED),
        ("48 89 07", READ_ONLY.linear, 7, READ_ONLY.linear),
        ("48 89 07", READ_ONLY.linear - 3, 7, READ_ONLY.linear),
        ("48 8b 07", READ_ONLY.end - 3, 4, READ_ONLY.end),
        ("48 89 07", DATA.linear - 3, 6, DATA.linear - 3),
        ("48 89 07", CODE.linear, 7, CODE.linear),
    ],
)
def test_page_faults(host: Host, code: str, linear: int, error_code: int, cr2: int) -> None:
    done = one(host, code, rdi=linear)
    assert done.fault == Fault(14, error_code, cr2)
    assert done.rip == ENTRY
    assert done.memory == {}


@pytest.mark.parametrize(
    "code, given, vector",
    [
        ("48 f7 f1", {}, 0),  # div rcx
        ("0f 0b", {}, 6),  # ud2
        ("f0 48 01 d8", {}, 6),  # LOCK with a register
        ("48 8b 07", {"rdi": NON_CANONICAL}, 13),
        ("48 8b 45 00", {"rbp": NON_CANONICAL}, 12),  # through SS
        ("0f 28 07", {"rdi": DATA.linear + 8}, 13),  # MOVAPS
        ("d9 00", {"fx": {"fcw": 0x300, "fsw": 0x8081}}, 16),
        ("0f 5e c1", {"fx": {"mxcsr": 0x1F00}}, 19),  # DIVPS 0/0
        ("8b 07", {"rdi": DATA.linear + 2, "flags": AC}, 17),
    ],
)
def test_exceptions(host: Host, code: str, given: dict[str, Any], vector: int) -> None:
    done = one(host, code, **given)
    assert (done.fault, done.rip) == (Fault(vector, 0), ENTRY)


def test_every_register_goes_in_and_comes_out(host: Host) -> None:
    source = random.Random(7)
    names = {name: source.getrandbits(64) for name in NUMBER}
    done = one(host, "90", **names)
    assert done.registers == list(names.values())


@pytest.mark.parametrize("flags", [0, 1, 4, 16, 64, 128, DF, OF, NT, AC, ID, FLAGS])
def test_every_flag_goes_in_and_comes_out(host: Host, flags: int) -> None:
    flags &= ~TF
    assert one(host, "90", flags=flags).flags & FLAGS == flags


def test_the_floating_point_state_goes_in_and_comes_out(host: Host) -> None:
    source = random.Random(8)
    given = {
        "fcw": 0x0C7F,
        "fsw": 0x7D41,
        "ftw": 0x5A,
        "mxcsr": 0xFFFF & ~0x3F,
        "st": [source.randbytes(10) for _ in range(8)],
        "xmm": [source.randbytes(16) for _ in range(16)],
    }
    left = FloatState.unpack(one(host, "90", fx=given).fx)
    assert {name: getattr(left, name) for name in given} == given


def test_pushfq_sees_the_flags_it_was_given(host: Host) -> None:
    done = one(host, "9c", rsp=DATA.linear + 0x40, flags=ID | AC | CF | DF)
    assert done.memory == {DATA.linear + 0x38: (ID | AC | CF | DF | 0x202).to_bytes(8, "little")}


def test_branches_land_where_they_go(host: Host) -> None:
    taken, not_taken, back, through = host.run(
        [
            case("72 20", flags=CF),
            case("72 20"),
            case("e9 00 f9 ff ff"),
            case("ff e0", rax=CODE.linear + 0xFF0),
        ]
    )
    assert taken.rip == ENTRY + 0x22
    assert not_taken.rip == ENTRY + 2
    assert back.rip == ENTRY + 5 - 0x700
    assert through.rip == CODE.linear + 0xFF0


@pytest.mark.parametrize("target", [UNMAPPED, DATA.linear, CODE.end])
def test_a_branch_has_ended_where_nothing_can_be_fetched(host: Host, target: int) -> None:
    done = one(host, "ff d7", rdi=target, rsp=DATA.linear + 8)
    assert (done.fault, done.rip) == (None, target)
    assert done.memory == {DATA.linear: (ENTRY + 2).to_bytes(8, "little")}


def test_a_branch_to_what_is_no_address_faults_itself(host: Host) -> None:
    done = one(host, "ff d7", rdi=NON_CANONICAL, rsp=DATA.linear + 8)
    assert (done.fault, done.rip, done.memory) == (Fault(13), ENTRY, {})


def test_segment_bases_reach_their_regions(host: Host) -> None:
    linear = DATA.linear + 0x88
    through_fs, through_gs = host.run(
        [
            case("64 8a 07", rdi=linear - FS_BASE),
            case("65 48 8b 07", rdi=(HIGH.linear + 16 - GS_BASE) & (1 << 64) - 1),
        ]
    )
    assert through_fs.registers[0] == word(linear, 1)[0]
    assert through_gs.registers[0].to_bytes(8, "little") == word(HIGH.linear + 16)


def test_a_string_instruction_stops_at_the_page_it_may_not_write(host: Host) -> None:
    done = one(host, "f3 48 ab", rax=0, rcx=5, rdi=READ_ONLY.linear - 16)
    assert done.fault == Fault(14, 7, READ_ONLY.linear)
    assert (done.registers[1], done.registers[7]) == (3, READ_ONLY.linear)
    assert done.memory == {READ_ONLY.linear - 16: bytes(8), READ_ONLY.linear - 8: bytes(8)}


def test_an_instruction_cut_off_by_the_end_of_its_page_faults_on_the_next(host: Host) -> None:
    done = one(host, "48 01", entry=CODE.end - 2)
    assert done.fault == Fault(14, 0x14, CODE.end)
    assert done.rip == CODE.end - 2


def test_32_bit_code(host: Host) -> None:
    done = one(host, "40", rax=0x7FFF_FFFF, bits=32)  # INC EAX
    assert (done.registers[0], done.rip) == (0x8000_0000, ENTRY + 1)
    assert done.flags & (OF | PF) == OF | PF


def test_an_endless_instruction_is_given_up(host: Host) -> None:
    endless, after = host.run([case("ff e0", rax=ENTRY), case("90", rax=5)])
    assert endless.hung
    assert (after.registers[0], after.hung) == (5, False)


def test_more_cases_than_a_batch_keep_their_order(host: Host) -> None:
    done = host.run([case("48 ff c0", rax=n) for n in range(5000)])
    assert [outcome.registers[0] for outcome in done] == list(range(1, 5001))


def test_large_outcomes_are_spread_over_batches(host: Host) -> None:
    """4,000 cases that each change 4 KiB do not fit into one batch's list of changes."""
    cases = [case("f3 48 ab", rax=n << 32, rcx=512, rdi=DATA.linear) for n in range(4000)]
    for number, done in enumerate(host.run(cases)):
        assert len(done.memory) == 512
        assert done.memory[DATA.linear] == (number << 32).to_bytes(8, "little")


@pytest.mark.parametrize(
    "code, given",
    [
        ("f0 48 01 07", {"rdi": DATA.linear + 0x39}),
        ("f0 01 07", {"rdi": DATA.linear + 0x3D}),
        ("48 87 07", {"rdi": DATA.linear + 0xFFC}),  # XCHG locks without the prefix
        ("f0 48 0f ab 07", {"rdi": DATA.linear + 1, "rax": 7 * 64}),  # BTS reaches 56 bytes on
        ("f0 48 0f c7 0f", {"rdi": DATA.linear + 0x3C}),
        ("0f 05", {}),
        ("0f 34", {}),
        ("cc", {}),
        ("cd 80", {}),
        ("48 cf", {}),
        ("f4", {}),
        ("0f a2 90", {}),  # two instructions
        ("e4 10", {}),
        ("48 0f 00 d8", {}),  # LTR
        ("eb fe", {}),
    ],
)
def test_what_the_host_must_not_execute_is_refused(
    host: Host, code: str, given: dict[str, Any]
) -> None:
    with pytest.raises(Unsafe):
        one(host, code, **given)


def test_a_locked_access_up_to_the_end_of_a_line_is_executed(host: Host) -> None:
    done = one(host, "f0 01 07", rdi=DATA.linear + 0x3C, rax=1)
    assert done.fault is None
    assert list(done.memory) == [DATA.linear + 0x38]
