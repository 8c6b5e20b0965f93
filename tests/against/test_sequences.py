"""Runs of instructions: the fast engine, which translates them as a whole, ends as the reference
engine does, which takes one at a time.

Flags that nobody reads are not stored, compares fuse with branches, branches become links, and a
fault comes in the middle: none of it may show.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.against.compare import differences, text_of_program
from tests.against.engines import Interp, Jit
from tests.against.sequences import sequence

COUNT = 100 * max(1, int(os.environ.get("TRAPLINE_DEEP") or 0))
INVALID_OPCODE = 6


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Jit, Interp]]:
    jit, interp = Jit(), Interp()
    yield jit, interp
    jit.close()
    interp.close()


@pytest.mark.parametrize("first", range(0, 8 * COUNT, COUNT))
def test_a_run_of_instructions_ends_alike_on_both_engines(
    first: int, engines: tuple[Jit, Interp]
) -> None:
    jit, interp = engines
    native = ended = 0
    for number in range(first, first + COUNT):
        case = sequence(number, 32 if number % 4 == 3 else 64)
        got, wanted = jit.run_program(case), interp.run_program(case)
        found = (
            [] if got.outcome == wanted.outcome else differences(case, wanted.outcome, got.outcome)
        )
        assert not found, f"{text_of_program(case)}\n{found}"
        assert not wanted.outcome.hung
        native += got.native
        fault = wanted.outcome.fault
        ended += fault is not None and fault.vector == INVALID_OPCODE
    assert native > COUNT // 2  # or nothing would have been compared
    assert ended > COUNT // 2
