"""QEMU as the judge of what a machine for test guests does, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

_PROGRAM = "qemu-system-x86_64"
_MACHINE = (
    *("-accel", "tcg", "-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio"),
    *("-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-device", "pc-testdev"),
)  # as kvm-unit-tests starts it


class Judged(NamedTuple):
    """What QEMU said of an image."""

    status: int
    output: bytes


def run_in_qemu(image: Path, *options: str, is_disk: bool = False) -> Judged:
    """Run an image to its end, as a floppy disk or as a kernel, or skip where there is no QEMU."""
    if shutil.which(_PROGRAM) is None:
        pytest.skip(f"there is no {_PROGRAM} here")
    disk = ("-drive", f"file={image},format=raw,if=floppy,snapshot=on")
    start = disk if is_disk else ("-kernel", str(image))
    command = [_PROGRAM, *_MACHINE, *options, *start]
    done = subprocess.run(command, capture_output=True, timeout=120, cwd=image.parent)
    assert not done.stderr, done.stderr
    return Judged(done.returncode, done.stdout)
