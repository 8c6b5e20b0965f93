"""Guests built with gcc, as and ld, in each mode that an image may stay in, on both vendors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.run import trapline
from tests.machine import guests
from tests.machine.qemu import run_in_qemu

DETECTING = ("sapphire-rapids", "zen5")
PAGING = {0: "no paging", 32: "32-bit paging", 36: "PAE"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def lines(image: Path, *options: str) -> tuple[list[str], int]:
    """What an image prints, and its status."""
    done = trapline("run", *options, image)
    return done.stdout.splitlines(), done.returncode


def protected_words(paging: int, traps: int, fault: tuple[str, ...] = ()) -> list[str]:
    """What protected_user.c says, after as many #DBs."""
    return [
        f"paging {bool(paging):08x}",
        f"detection {traps:08x}",
        *fault,
        "counter 00000001",
        f"traps {traps:08x}",
        "dr6 ffff07f0" if traps else "dr6 00000000",
        "after 00000000",
    ]


@pytest.mark.parametrize("paging", PAGING, ids=PAGING.values())
@pytest.mark.parametrize("cpu", DETECTING)
def test_32_bit_code_at_cpl_3_gets_its_debug_exception(folder: Path, cpu: str, paging: int) -> None:
    """SDM 3B, "Bus-Lock Debug Exception", for an operand that crosses a page as well."""
    image = guests.build32(folder, "protected_user.c", f"-DPAGING={paging}")
    assert lines(image, "--cpu", cpu) == (protected_words(paging, 1), 3)


@pytest.mark.parametrize("paging", PAGING, ids=PAGING.values())
def test_a_processor_without_the_feature_refuses_the_bit(folder: Path, paging: int) -> None:
    """WRMSR of DEBUGCTL.BLD is #GP(0), and the guest's handler goes on behind it."""
    image = guests.build32(folder, "protected_user.c", f"-DPAGING={paging}", "-DTRY")
    fault = ("#GP at WRMSR 00000001", "error 00000000")
    assert lines(image, "--cpu", "legacy") == (protected_words(paging, 0, fault), 0x27)


@pytest.mark.parametrize("paging", PAGING, ids=PAGING.values())
def test_qemu_says_the_same_of_32_bit_code_without_the_feature(folder: Path, paging: int) -> None:
    image = guests.build32(folder, "protected_user.c", f"-DPAGING={paging}")
    judged = run_in_qemu(image)
    assert (judged.output.decode().splitlines(), judged.status) == lines(image, "--cpu", "zen4")


REFUSED = ["#AC with error code 00000000", "at CPL 00000000", "counter is still 00000001"]


@pytest.mark.parametrize(
    ("cpu", "words"),
    [
        ("sapphire-rapids", REFUSED),
        ("icelake", REFUSED),
        ("zen5", ["no split lock detection"]),
        ("legacy", ["no split lock detection"]),
    ],
)
def test_a_64_bit_elf_has_split_locks_refused_at_cpl_0(
    folder: Path, cpu: str, words: list[str]
) -> None:
    """SDM 3B, "#AC for Split-locked Accesses": before the access, whatever the CPL."""
    flags = ("-O2", "-fno-stack-protector", "-mno-red-zone", "-mgeneral-regs-only", "-Werror")
    image = guests.build(folder, "alignment.c", flags=flags, link=("-Ttext", "0x200000"))
    status = 3 if words is REFUSED else 1
    expected = ["counter 00000001", *words, "counter 00000002"]
    assert lines(image, "--cpu", cpu) == (expected, status)


def test_a_boot_sector_runs_as_it_does_from_a_disk(folder: Path) -> None:
    """Real mode and 16-bit protected mode, with split locks in both."""
    flat = ("-Ttext", "0x7c00", "--oformat", "binary")
    image = guests.build(folder, "boot_sector.S", link=flat)
    sector = image.read_bytes()
    assert len(sector) == 512
    words = ["real mode 0100", "16-bit protected mode 3400", "0F21", "and back"]
    for cpu in DETECTING:
        done = trapline("run", "--cpu", cpu, image)
        assert (done.stdout.splitlines(), done.returncode) == (words, 0x43)
        assert "2 bus locks at 2 instructions" in done.stderr
    disk = folder / "disk"
    disk.write_bytes(sector.ljust(1440 << 10, b"\0"))
    judged = run_in_qemu(disk, is_disk=True)
    assert (judged.output.decode().splitlines(), judged.status) == (words, 0x43)


@pytest.mark.parametrize("cpu", DETECTING)
def test_every_way_to_flush_drops_translations(folder: Path, cpu: str) -> None:
    """SDM 3A, "Operations that Invalidate TLBs": MOV to CR3, a change of CR4.PGE, INVLPG."""
    image, _ = guests.build_long(folder, "stale.c")
    assert lines(image, "--cpu", cpu) == (["stale 00000000"], 1)
