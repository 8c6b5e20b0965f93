"""Single flags, LAHF and SAHF."""

from __future__ import annotations

import pytest

from tests.processor.isa.conftest import Run

DF = 1 << 10


def test_carry(run: Run) -> None:
    assert run("clc", "f8", flags="cf zf").flags == {"zf"}
    assert run("stc", "f9", flags="of").flags == {"cf", "of"}
    assert run("cmc", "f5", flags="cf").flags == set()
    assert run("cmc", "f5", flags="sf").flags == {"cf", "sf"}


def test_direction(run: Run) -> None:
    after = run("std", "fd", flags="cf", system=1 << 21)
    assert (after.system_flags, after.flags) == (DF | 1 << 21 | 2, {"cf"})
    assert run("cld", "fc", system=DF | 1 << 21).system_flags == 1 << 21 | 2


@pytest.mark.parametrize(
    "flags, image", [("", 2), ("cf", 3), ("pf", 6), ("af", 0x12), ("zf", 0x42), ("sf", 0x82)]
)
def test_lahf_and_sahf(run: Run, flags: str, image: int) -> None:
    after = run("lahf", "9f", rax=0x9_9911, flags=flags)
    assert after.rax == 0x9_0011 | image << 8
    assert run("sahf", "9e", rax=image << 8, flags="of").flags == set(flags.split()) | {"of"}


def test_sahf_ignores_the_other_bits(run: Run) -> None:
    assert run("sahf", "9e", rax=0x2A00, flags="cf sf").flags == set()
