"""Guests for the board: pieces of code, images around them, and a run to the end."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from trapline.kvm import open_kvm
from trapline.machine import Board, Ending, Module, Runner

IMAGES = Path(__file__).parent / "images"
ORIGIN = 0x7C00
MIB = 1 << 20
STATUS = 0x55  # what `END` gives: (0x2a << 1) | 1


def out(port: int, value: int) -> bytes:
    """mov al, value; mov dx, port; out dx, al"""
    return b"\xb0" + bytes((value,)) + wide_port(port) + b"\xee"


def wide_port(port: int) -> bytes:
    """mov dx, port, in 16-bit code."""
    return b"\xba" + struct.pack("<H", port)


def say(text: bytes, port: int = 0x3F8) -> bytes:
    return b"".join(out(port, byte) for byte in text)


END = bytes.fromhex("b0 2a e6 f4")  # mov al, 2ah; out 0f4h, al
HLT = b"\xf4"
FOREVER = b"\xeb\xfe"


class Finished(NamedTuple):
    """A guest's run: how it ended, what it printed, where it left the board."""

    ending: Ending
    output: bytes
    board: Board
    runner: Runner


def run(
    image: bytes,
    command_line: str = "",
    *,
    timeout: float = 60,
    memory: int = 16 * MIB,
    engine: str = "jit",
    cpu: str = "max",
    bus_lock_exits: bool = False,
    observer: object = None,
    address: int | None = None,
    modules: Sequence[Module] = (),
    cpus: int = 1,
) -> Finished:
    """Run an image to its end."""
    output = bytearray()
    kvm = open_kvm(cpu=cpu, engine=engine, observer=observer)  # type: ignore[arg-type]
    board = Board(kvm, memory, output.extend, cpus=cpus, bus_lock_exits=bus_lock_exits)
    board.load(image, command_line, address, modules)
    runner = Runner(board)
    ending = runner.run(timeout)
    board.close()
    return Finished(ending, bytes(output), board, runner)


def multiboot(code: bytes, at: int = 0x100000) -> bytes:
    """An image that is not ELF: the header says where it goes, the code follows it."""
    flags = 1 << 16
    header = struct.pack("<3I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    end = at + 32 + len(code)
    return header + struct.pack("<5I", at, at, end, end + 64, at + 32) + code


def elf64(code: bytes, at: int = 0x200000, entry: int | None = None) -> bytes:
    """An ELF64 executable of one segment."""
    header = struct.pack(
        "<4s5B7xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 0, 2, 62, 1,
        at if entry is None else entry, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 120, at, at, len(code), len(code) + 100, 4096)
    return header + segment + code


def build(
    folder: Path,
    *sources: str,
    flags: tuple[str, ...] = (),
    link: tuple[str, ...] = ("-T", str(IMAGES / "guest.ld")),
) -> Path:
    """Compile and link one freestanding image, or skip where that cannot be done."""
    if shutil.which("gcc") is None or shutil.which("ld") is None:
        pytest.skip("there is no gcc or no ld here")
    linked = folder / f"{Path(sources[-1]).stem}.elf"
    objects = []
    for source in sources:
        objects.append(str(folder / f"{source}.o"))
        options = ("-g", "-ffreestanding", "-fno-pic", "-c", *flags)
        compiling = ["gcc", *options, "-o", objects[-1], str(IMAGES / source)]
        done = subprocess.run(compiling, capture_output=True, text=True, timeout=60)
        if done.returncode:
            pytest.skip(f"gcc {' '.join(flags)} cannot compile this: {done.stderr[:200]}")
    linking = ["ld", "-n", "--build-id=none", *link, "-o", str(linked), *objects]
    subprocess.run(linking, check=True, capture_output=True, timeout=60)
    return linked


_C = ("-O2", "-fno-stack-protector", "-Wall", "-Wextra", "-Werror")


def build32(folder: Path, source: str, *flags: str) -> Path:
    """One 32-bit multiboot image in C, with symbols and lines."""
    script = ("-m", "elf_i386", "-T", str(IMAGES / "guest.ld"))
    return build(folder, source, flags=("-m32", "-mgeneral-regs-only", *_C, *flags), link=script)


def build_long(folder: Path, source: str) -> tuple[Path, Path]:
    """64-bit C behind images/long_boot.S: as ELF32, in the manner of kvm-unit-tests, and as
    ELF64."""
    flags = ("-mno-red-zone", "-mgeneral-regs-only", *_C)
    return _both(build(folder, "long_boot.S", source, flags=flags))


def build_long_mode(folder: Path) -> tuple[Path, Path]:
    """images/long_mode.S as ELF32 and as ELF64."""
    return _both(build(folder, "long_mode.S"))


def _both(image: Path) -> tuple[Path, Path]:
    narrow = image.with_name(f"{image.stem}32.elf")
    subprocess.run(["objcopy", "-O", "elf32-i386", image, narrow], check=True, timeout=60)
    return narrow, image
