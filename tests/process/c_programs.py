"""The C programs under `programs`, compiled where the tests run."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
_folder = tempfile.TemporaryDirectory(prefix="trapline-programs-")


@cache
def compiled(name: str) -> str:
    """The path of the compiled program."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    target = Path(_folder.name) / name
    command = ["gcc", "-O1", "-w", "-pthread", "-o", str(target), str(PROGRAMS / f"{name}.c")]
    subprocess.run([*command, "-lrt"], check=True, timeout=60)
    return str(target)
