"""Images and guests that mean harm or are broken: a sentence or an ending, never anything else."""

from __future__ import annotations

import os
import random
import struct
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.run import trapline
from tests.machine import guests
from tests.machine.guests import END, MIB, run
from trapline.kvm import exits, open_kvm
from trapline.machine import BadImage, Board, How, Module
from trapline.machine.boot import load
from trapline.machine.memory import Memory


def examples(count: int) -> settings:
    """That many, however long they take."""
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


NUMBERS = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Real ones of each kind that a loader knows."""
    narrow, wide = guests.build_long_mode(tmp_path_factory.mktemp("images"))
    return [narrow.read_bytes(), wide.read_bytes(), guests.elf64(END), guests.multiboot(END)]


@cache
def memory() -> Memory:
    return Memory(16 * MIB)


@st.composite
def damages(draw: st.DrawFn) -> tuple[int, float, list[tuple[int, bytes]]]:
    """Which image, how much of it, and what is written over it: in its headers, mostly."""
    words = st.sampled_from(NUMBERS) | st.integers(0, (1 << 64) - 1)
    sizes = st.sampled_from([1, 2, 4, 8])
    places = st.integers(0, 200) | st.integers(0, 0x2000)
    patch = st.builds(
        lambda at, word, size: (at, word.to_bytes(8, "little")[:size]), places, words, sizes
    )
    kept = draw(st.just(1.0) | st.floats(0, 1))
    return draw(st.integers(0, 3)), kept, draw(st.lists(patch, max_size=5))


def damaged(image: bytes, kept: float, patches: list[tuple[int, bytes]]) -> bytes:
    data = bytearray(image)
    for at, new in patches:
        data[at : at + len(new)] = new
    return bytes(data[: int(kept * len(data))])


@examples(400)
@given(damage=damages(), modules=st.lists(st.binary(max_size=64), max_size=3))
def test_a_damaged_image_is_started_or_refused(
    images: list[bytes], damage: tuple[int, float, list[tuple[int, bytes]]], modules: list[bytes]
) -> None:
    which, kept, patches = damage
    try:
        where = load(
            memory(),
            damaged(images[which], kept, patches),
            "words",
            None,
            [Module(data, "module") for data in modules],
        )
    except BadImage as error:
        assert str(error)[0].islower() and not str(error).endswith(".")
    else:
        assert 0 <= where.entry < 1 << 64


@examples(25)
@given(damage=damages(), cpu=st.sampled_from(["max", "zen5"]))
def test_a_damaged_image_that_starts_comes_to_an_end(
    images: list[bytes], damage: tuple[int, float, list[tuple[int, bytes]]], cpu: str
) -> None:
    which, kept, patches = damage
    try:
        done = run(damaged(images[which], kept, patches), cpu=cpu, timeout=0.1)
    except BadImage:
        return
    assert done.ending.how in How
    assert done.ending.sentence


@examples(40)
@given(
    code=st.binary(min_size=1, max_size=60),
    kind=st.sampled_from(["flat", "multiboot", "elf64"]),
    cpu=st.sampled_from(["max", "zen5"]),
)
def test_random_code_comes_to_an_end(code: bytes, kind: str, cpu: str) -> None:
    wrap = {"flat": bytes, "multiboot": guests.multiboot, "elf64": guests.elf64}[kind]
    assert run(wrap(code), cpu=cpu, timeout=0.05).ending.how in How


REP_4G = "b9 ff ff ff ff be 00 00 20 00 bf 00 00 30 00 ba 80 00 00 00"


@pytest.mark.parametrize("cpu", ["max", "zen5"])
@pytest.mark.parametrize(
    "code",
    [
        REP_4G + "f3 a4",  # rep movsb, 4 Gi times
        REP_4G + "f3 6c",  # rep insb
        REP_4G + "f3 6e",  # rep outsb
        REP_4G + "bf 00 00 00 c0 f3 ab",  # rep stosd to where nothing is
        "f0 ff 05 3e 00 20 00 eb f7",  # split locks for ever
        "f0 ff 05 00 00 00 ff eb f7",  # locked updates of device memory for ever
        "fa eb fe",
        "0f a2 eb fc",
    ],
)
def test_the_timeout_ends_whatever_keeps_a_processor_busy(code: str, cpu: str) -> None:
    done = run(guests.multiboot(bytes.fromhex(code)), cpu=cpu, timeout=0.1)
    assert done.ending.how is How.TIMEOUT


def test_device_memory_answers_at_every_size() -> None:
    """Whatever is there (I/O APIC, the test window), and where nothing is."""
    board = Board(open_kvm(), MIB, lambda data: None)
    chance = random.Random(11)
    for _ in range(3000):
        base = chance.choice([0xFEC00000, 0xFEC00FF0, 0xFF000000, 0xFF00FFF0, 0xFED00000])
        at, size = base + chance.randrange(64), chance.randrange(1, 9)
        data = bytearray(chance.choice([bytes(8), b"\xff" * 8, chance.randbytes(8)]))
        board.device_memory.serve(exits.Mmio(at, size, chance.random() < 0.5, data))
        assert len(data) == 8
    board.close()


SEGMENT = struct.Struct("<IIQQQQQQ")


def two_segments(first: tuple[int, int], second: tuple[int, int]) -> bytes:
    """An ELF64 whose segments are at these addresses and sizes; the code is in the first."""
    image = bytearray(guests.elf64(END, at=first[0]))
    image[56:58] = (2).to_bytes(2, "little")
    code_at = 64 + 2 * SEGMENT.size
    parts = [
        SEGMENT.pack(1, 5, code_at, at, at, len(END) if at == first[0] else 0, size, 4096)
        for at, size in (first, second)
    ]
    return bytes(image[:64]) + b"".join(parts) + END


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ((0x300000, 1 << 40), "which is not memory of a machine with 16 MiB"),
        ((1 << 63, 16), "which is not memory"),
        ((15 * MIB, 2 * MIB), "which is not memory"),
        ((0xEFFF0, 0x20), "which the firmware occupies"),
    ],
)
def test_segments_that_fit_nowhere_are_refused(second: tuple[int, int], sentence: str) -> None:
    with pytest.raises(BadImage, match=sentence):
        run(two_segments((0x200000, 0x1000), second))


def test_segments_that_overlap_are_loaded_in_their_order() -> None:
    assert run(two_segments((0x200000, 0x1000), (0x200800, 0x1000))).ending.status == guests.STATUS


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    image = tmp_path / "secret.elf"
    image.write_bytes(guests.elf64(END))
    image.chmod(0)
    if os.access(image, os.R_OK):
        pytest.skip("this user may read everything")
    done = trapline("run", image)
    assert done.stderr == f"trapline: cannot read {image}: Permission denied\n"
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        ("/no/such", "cannot read /no/such: No such file or directory"),
        ("/no/a,,b words", "cannot read /no/a,b: No such file or directory"),
        ("", "a file name is missing in --initrd ''"),
        ("/dev/null,", "a file name is missing in --initrd '/dev/null,'"),
        ("/dev/zero", "/dev/zero is larger than any image can be (128 MiB)"),
    ],
)
def test_modules_that_cannot_be_had_are_named(tmp_path: Path, modules: str, sentence: str) -> None:
    image = tmp_path / "guest"
    image.write_bytes(guests.multiboot(END))
    done = trapline("run", "--initrd", modules, image)
    assert done.stderr.splitlines()[0] == f"trapline: {sentence}"
    assert (done.returncode, done.stdout) == (2, "")


def test_modules_need_room_and_a_multiboot_image(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(15 * MIB + 1))
    image = tmp_path / "guest"
    image.write_bytes(guests.multiboot(END))
    done = trapline("run", "--memory", "16M", "--initrd", big, image)
    assert "there is no room for the module" in done.stderr
    image.write_bytes(END)
    done = trapline("run", "--initrd", "/dev/null", image)
    assert done.stderr == (
        f"trapline: cannot start {image}: modules are for multiboot images, and this is none\n"
    )
