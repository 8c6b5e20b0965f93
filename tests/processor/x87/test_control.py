"""Control and status words, the environment in its four layouts, FNSAVE and FRSTOR."""

from __future__ import annotations

import struct

import pytest

from tests.processor.isa.machine import interp
from tests.processor.x87.unit import (
    C1,
    DENORMAL,
    EMPTY,
    IE,
    INFINITY,
    MASKED,
    PE,
    QUIET,
    bits,
    done,
)

ENVIRONMENT = {"fip": 0x1234_5678, "fdp": 0x9ABC_DEF0, "fop": 0x5AA}
UNNORMAL = 0x40000000000000000001


def test_the_control_word_keeps_what_it_has(engine: str) -> None:
    after = done(engine, "d92f d93f", memory=b"\xff\xff")
    assert (after.fcw, after.memory(2)) == (0x1F7F, b"\x7f\x1f")
    after = done(engine, "d92f", memory=b"\x00\x00")
    assert after.fcw == 0x40


def test_the_status_word_goes_to_memory_and_to_ax(engine: str) -> None:
    after = done(engine, "dfe0 dd3f", fsw=0x4123, rax=0xFFFF_FFFF_FFFF)
    assert (after.rax, after.memory(4)) == (0xFFFF_FFFF_4123, b"\x23\x41\x00\x00")


def test_clearing_leaves_the_conditions_and_the_top(engine: str) -> None:
    assert done(engine, "dbe2", fsw=0x7F7F).fsw == 0x7F00


def test_initialising_leaves_the_registers(engine: str) -> None:
    after = done(engine, "dbe3", [1.0] * 8, fcw=0x40, fsw=3 << 11 | C1, **ENVIRONMENT)
    assert (after.fcw, after.fsw, after.ftw) == (MASKED, 0, 0)
    assert (after.fip, after.fdp, after.fop) == (0, 0, 0)
    assert after.state.x87(0) == bits(1.0)


TAGGED = [1.0, 0.0, EMPTY, INFINITY, QUIET, DENORMAL, UNNORMAL, bits(-0.0)]
TAGS = 0b01_10_10_10_10_11_01_00  # R7 to R0: zero, special ..., empty, zero, valid


def test_tags_are_found_from_the_registers(engine: str) -> None:
    after = done(engine, "d937", TAGGED)
    assert struct.unpack("<H", after.memory(2, 8)) == (TAGS,)
    after = done(engine, "d927", TAGGED, after.memory(28))
    assert after.ftw == 0b1111_1011


def test_the_environment_in_28_bytes(engine: str) -> None:
    after = done(engine, "d937", [1.0], fcw=0x37B, fsw=PE, **ENVIRONMENT)
    assert struct.unpack("<7I", after.memory(28)) == (
        0xFFFF_037B, 0xFFFF_0020, 0xFFFF_FFFC, 0x1234_5678, 0x05AA_0000, 0x9ABC_DEF0, 0xFFFF_0000,
    )  # fmt: skip
    assert (after.fcw, after.fsw) == (MASKED, PE)
    back = done(engine, "d927", memory=after.memory(28))
    assert (back.fcw, back.fsw, back.ftw) == (0x37B, PE, 1)
    assert (back.fip, back.fdp, back.fop) == tuple(ENVIRONMENT.values())


def test_the_environment_in_14_bytes(engine: str) -> None:
    after = done(engine, "66 d937", [1.0], fsw=PE, **ENVIRONMENT)
    assert struct.unpack("<7H", after.memory(14)) == (MASKED, PE, 0xFFFC, 0x5678, 0, 0xDEF0, 0)
    assert after.memory(2, 14) == bytes(2)
    back = done(engine, "66 d927", memory=after.memory(14), fop=0x111)
    assert (back.fip, back.fdp, back.fop, back.ftw) == (0x5678, 0xDEF0, 0x111, 1)


@pytest.mark.parametrize("cr0, system", [(0, 0), (1, 1 << 17)])
@pytest.mark.parametrize("wide", [False, True])
def test_the_environment_outside_protected_mode(cr0: int, system: int, wide: bool) -> None:
    """Linear addresses in pieces; in real mode and in virtual-8086 mode alike."""
    slots = {"cr0": cr0, "system": system, "rdi": 0x8000, "fcw": MASKED}
    size, form = (28, "<6H2I") if wide else (14, "<7H")
    name, prefix = ("fpuenv28 ptr ", "66 ") if wide else ("", "")
    given = {"fip": 0x9_5678, "fdp": 0xA_DEF0, "fop": 0x5AA}
    after = interp(f"fnstenv {name}[di]", prefix + "d935", 16, **slots, **given)
    image = after.word(0x8000, size).to_bytes(size, "little")
    if wide:
        assert struct.unpack("<7I", image)[3:] == (
            0xFFFF_5678, 0x0000_95AA, 0xFFFF_DEF0, 0x0000_A000,
        )  # fmt: skip
    else:
        assert struct.unpack(form, image)[3:] == (0x5678, 0x95AA, 0xDEF0, 0xA000)
    back = interp(
        f"fldenv {name}[di]", prefix + "d925", 16, **slots, memory={0x8000: image}, fop=0x111
    )
    assert {key: getattr(back, key) for key in given} == given


def test_saving_stores_the_stack_and_initialises(engine: str) -> None:
    stack = [float(number) for number in range(1, 7)]
    after = done(engine, "dd37", stack, fsw=5 << 11 | IE, **ENVIRONMENT)
    assert (after.fcw, after.fsw, after.ftw, after.fip) == (MASKED, 0, 0, 0)
    image = after.memory(108)
    assert [int.from_bytes(image[28 + 10 * i : 38 + 10 * i], "little") for i in range(6)] == [
        bits(number) for number in stack
    ]
    back = done(engine, "dd27", memory=image)
    assert (back.values, back.top, back.flags) == (stack, 5, IE)
    assert (back.fip, back.fdp, back.fop) == tuple(ENVIRONMENT.values())


@pytest.mark.parametrize("top", range(8))
def test_saving_and_restoring_in_94_bytes_turns_the_stack(engine: str, top: int) -> None:
    stack = [float(number) for number in range(8)]
    image = done(engine, "66 dd37", stack, fsw=top << 11).memory(94)
    back = done(engine, "66 dd27", memory=image)
    assert (back.top, back.stack) == (top, stack)


def test_an_environment_with_a_flag_that_it_unmasks_is_pending(engine: str) -> None:
    image = struct.pack("<7I", 0x37E, IE, 0xFFFF, 0, 0, 0, 0)
    assert done(engine, "d927", memory=image).fsw == 0x8081
    image = struct.pack("<7I", MASKED, IE | 0x8080, 0xFFFF, 0, 0, 0, 0)
    assert done(engine, "d927", memory=image).fsw == IE


@pytest.mark.parametrize("code", ["dbe0", "dbe1", "dbe4", "d9d0", "9b"])
def test_what_does_nothing_changes_nothing(engine: str, code: str) -> None:
    """Not even the instruction pointer."""
    after = done(engine, code, [1.0], fsw=0x4700, **ENVIRONMENT)
    assert (after.fsw, after.fip, after.fop) == (0x4700, ENVIRONMENT["fip"], 0x5AA)
