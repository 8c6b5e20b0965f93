"""The example of docs/hypervisor.md does what that page says it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "bus_lock_guest.py"


@pytest.mark.parametrize("model", ["sapphire-rapids", "zen5"])
def test_it_prints_what_the_page_shows(model: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, model], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.startswith("DR6 0xffff07f0: bit 11 is 0")
    assert done.stdout in (ROOT / "docs" / "hypervisor.md").read_text()


def test_a_processor_without_the_feature_says_so() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, "zen4"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "This processor has no bus lock detection: WRMSR would be #GP.\n"
