"""Code made to harm: whatever a guest executes, the host lives, goes on, and is not written to.

Each case runs in a process of its own kind (see hostile.py); where both engines come to an end of
their own, they must come to the same one.  TRAPLINE_DEEP=1000 runs a thousand times as many cases.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter

import pytest

from tests import watched
from tests.against.hostile import Ending
from tests.against.hostile_cases import KINDS, Hostile, hostile
from tests.against.hostile_guest import GDT, PAGE, SIZE, GuardedRam, Guest
from tests.watched import Died

DEEP = max(1, int(os.environ.get("TRAPLINE_DEEP") or 0))
CHUNK = 500
COUNTS = dict(zip(KINDS, (3000, 3000, 1000, 1500), strict=True))
OWN = ("halted", "shut down")  # ends that do not depend on time
ENDS = (*OWN, "limit", "kicked")


def run(kind: str, engine: str, first: int, count: int, **more: int) -> list[Ending]:
    """Run cases in another process; what became of each."""
    setting = {"kind": kind, "engine": engine, "first": first, "count": count, "seed": 0, **more}
    return [Ending(**ending) for ending in watched.run("tests.against.hostile", setting)]


def told(case: Hostile) -> str:
    """What is needed to run a case again."""
    code = case.code[case.offset : case.offset + 256].hex()
    return f"{case.kind} {case.number}, seed {case.seed}, {case.bits}-bit, {case.registers}\n{code}"


def chunks() -> list[tuple[str, int]]:
    return [(kind, first) for kind, count in COUNTS.items() for first in range(0, count, CHUNK)]


@pytest.mark.parametrize("kind, first", chunks())
def test_hostile_code_ends_without_harm_and_alike_on_both_engines(kind: str, first: int) -> None:
    ends: Counter[str] = Counter()
    for begin in range(first * DEEP, (first + CHUNK) * DEEP, CHUNK):
        sides = [run(kind, engine, begin, CHUNK) for engine in ("interp", "jit")]
        for interp, jit in zip(*sides, strict=True):
            case = hostile(kind, interp.number)
            for engine, ending in (("interp", interp), ("jit", jit)):
                assert ending.how in ENDS, f"{engine} {ending.how}: {told(case)}\n{ending.text}"
                ends[engine, ending.how] += 1
            if interp.digest and jit.digest:
                ends["compared"] += 1
                assert interp.digest == jit.digest, f"{interp.how}, {jit.how}: {told(case)}"
    print(dict(ends))
    assert ends["compared"] > CHUNK * DEEP // 8


# -- the watchers watched --------------------------------------------------------------------------


def test_a_process_that_crashes_is_told_with_its_case() -> None:
    with pytest.raises(Died, match=r"status -11, in case 7"):
        run("user", "interp", 5, 5, crash_at=7)


def test_a_write_beside_ram_kills_a_canary() -> None:
    ram = GuardedRam(16 * PAGE)
    assert ram.canaries_live()
    ram.load(0, bytes([1]) * 16 * PAGE)
    assert ram.canaries_live()
    for beside in (ram.start - 1, ram.start + ram.size):
        before = ctypes.string_at(beside, 1)
        ctypes.memset(beside, before[0] ^ 1, 1)
        assert not ram.canaries_live()
        ctypes.memset(beside, before[0], 1)


def test_a_change_to_what_the_supervisor_protects_is_seen() -> None:
    guest = Guest()
    before = guest.protected_parts()
    guest.set_word(SIZE - 8, 1)
    assert guest.protected_parts() == before
    guest.set_word(GDT, 1)
    assert guest.protected_parts() != before
    guest.restore()
    entry = guest.tables.entry(0x1000)
    guest.set_word(entry, guest.word(entry) ^ 0x20)  # accessed
    assert guest.protected_parts() == before
    guest.set_word(entry, guest.word(entry) ^ 4)  # user
    assert guest.protected_parts() != before
