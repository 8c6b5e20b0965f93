"""No guest harms the host process: hostile code at CPL 0 and badly set up guests, on both vendors.

Every case ends in exits that KVM documents, within its time, with no exception of Python's and no
byte written beside its memory; a guest that was set up soundly never makes its own entry fail.
Each runs in a process of its own kind (worker.py); TRAPLINE_DEEP=100 runs a hundred times as many.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests import watched
from tests.kvm.hostile.cases import MODES, case
from tests.kvm.hostile.worker import Ending
from tests.watched import Died

DEEP = max(1, int(os.environ.get("TRAPLINE_DEEP") or 0))
COUNT = 250  # of each vendor with each engine


def run(vendor: str, engine: str, first: int, count: int, **more: int) -> list[Ending]:
    """Run cases in another process; what became of each."""
    setting = {"vendor": vendor, "engine": engine, "first": first, "count": count, "seed": 0}
    told = watched.run("tests.kvm.hostile.worker", {**setting, **more})
    return [Ending(**ending) for ending in told]


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
