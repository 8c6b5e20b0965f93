"""docs/guests.md does what it says: its guest is built and run by its own commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.run import COMPILING

GUIDE = Path(__file__).parents[2] / "docs" / "guests.md"


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_guide_s_guest_is_built_run_and_reported(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("ld") is None:
        pytest.skip("there is no gcc or no ld here")
    (tmp_path / "lock.c").write_text(block("c"))
    outputs = []
    for command in block("sh").splitlines():
        own = command.replace("trapline", f"{sys.executable} -m trapline.cli", 1)
        words = own if command.startswith("trapline") else command
        done = subprocess.run(
            words.split(), cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        errors = "".join(
            line for line in done.stderr.splitlines(True) if not line.startswith(COMPILING)
        )
        outputs.append((done.returncode, done.stdout, errors))
    built, linked, ran, report = outputs
    assert (built[0], linked[0], ran[0], report[0]) == (0, 0, 1, 0)
    # Where the instruction stands is the compiler's business.
    said, shown = (re.sub("0x[0-9a-f]+", "0x", text) for text in (ran[1] + ran[2], block("text")))
    assert said == shown
    assert "1,000 split locks in guest at" in report[1]
    assert "lock.c:" in report[1]
    assert "(shared.counter)" in report[1]
