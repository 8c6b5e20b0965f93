"""No guest harms the host process: hostile code at CPL 0 and badly set up guests, on both vendors.

Every case ends in exits that KVM documents, within its time, with no exception of Python's and no
byte written beside its memory; a guest that was set up soundly never makes its own entry fail.
Each runs in a process of its own kind (worker.py); TRAPLINE_DEEP=100 runs a hundred times as many.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.kvm.hostile.cases import MODES, case
from tests.kvm.hostile.worker import Ending

ROOT = Path(__file__).resolve().parents[3]
DEEP = max(1, int(os.environ.get("TRAPLINE_DEEP") or 0))
COUNT = 250  # of each vendor with each engine
HANG = 120.0  # seconds without a word


class Died(Exception):
    """The process that ran the cases did not live to tell, or was silent for too long."""


def run(vendor: str, engine: str, first: int, count: int, **more: int) -> list[Ending]:
    """Run cases in another process; what became of each."""
    setting = {"vendor": vendor, "engine": engine, "first": first, "count": count, "seed": 0}
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.kvm.hostile.worker", json.dumps({**setting, **more})],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    try:
        return _listen(child, count)
    finally:
        child.kill()
        child.communicate()


def _listen(child: subprocess.Popen[bytes], count: int) -> list[Ending]:
    assert child.stdout is not None and child.stderr is not None
    endings: list[Ending] = []
    begun, rest = "none", b""
    while len(endings) < count:
        ready, _, _ = select.select([child.stdout], [], [], HANG)
        piece = os.read(child.stdout.fileno(), 1 << 16) if ready else b""
        if not piece:
            child.kill()
            status, said = child.wait(), child.stderr.read().decode(errors="replace")
            what = f"died, status {status}" if ready else "hung"
            raise Died(f"{what}, in case {begun}\n{said[-3000:]}")
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                endings.append(Ending(**json.loads(line)))
            else:
                begun = line.decode()
    return endings


@pytest.mark.parametrize("engine", ["interp", "jit"])
@pytest.mark.parametrize("vendor", ["intel", "amd"])
def test_hostile_guests_end_without_harm(vendor: str, engine: str) -> None:
    seen: Counter[str] = Counter()
    for first in range(0, COUNT * DEEP, COUNT):
        for ending in run(vendor, engine, first, COUNT):
            assert not ending.wrong, f"case {ending.number}: {ending.wrong}"
            seen.update(ending.exits.keys())
    print(dict(seen))
    # The cases reach what they are made for.
    for exit in ("Io", "Mmio", "Shutdown", "Debug", "FailEntry", "InternalError"):
        assert seen[exit], exit


def test_the_cases_are_of_every_mode_and_from_sound_starts_mostly() -> None:
    made = [case(number) for number in range(COUNT)]
    assert {one.mode for one in made} == set(MODES)
    assert sum(not one.is_wild for one in made) > COUNT // 2
    assert case(7) == case(7) != case(8)


def test_a_process_that_crashes_is_told_with_its_case() -> None:
    with pytest.raises(Died, match=r"status -11, in case 3"):
        run("intel", "interp", 2, 5, crash_at=3)
