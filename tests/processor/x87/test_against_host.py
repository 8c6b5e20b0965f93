"""Every x87 form against the host, from states in which it mostly succeeds: exceptions masked,
the stack half full.  (The matrix of tests.against has the rest: unmasked, empty, full, faulting.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from iced_x86 import CpuidFeature

from tests.against.cases import cases
from tests.against.compare import differences, reproducer
from tests.against.engines import Engine, Interp, Jit
from tests.against.forms import Form, all_forms, features
from tests.against.host import Host
from tests.against.state import Case, FloatState

COUNT = 24
# Longer than native code's bounce buffer.
NOT_NATIVE = ("fnsave", "frstor")
_FPU = {CpuidFeature.FPU, CpuidFeature.FPU287, CpuidFeature.FPU387}


def forms(bits: int) -> list[Form]:
    return [form for form in all_forms(bits) if features(form.code) & _FPU]


def calm(case: Case) -> Case:
    """The same instruction with all exceptions masked, none pending, and a stack that has both
    numbers and room."""
    source = Random(case.fx)
    state = FloatState.unpack(case.fx)
    state.fcw |= 0x3F
    state.mxcsr |= 0x1F80
    state.fsw &= 0x7F7F
    top = state.fsw >> 11 & 7
    state.ftw = sum(1 << (top + i & 7) for i in range(source.choice((4, 6, 7))))
    return replace(case, fx=state.pack(), flags=case.flags & ~(1 << 18))


@pytest.fixture(scope="module", params=[Interp, Jit], ids=["interp", "jit"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made: Engine = request.param()
    yield made
    made.close()


@pytest.mark.parametrize("bits", [64, 32])
def test_every_form_does_what_the_host_does(engine: Engine, bits: int) -> None:
    made = [calm(case) for form in forms(bits) for case in cases(form, COUNT, seed=87)]
    if isinstance(engine, Jit):
        engine.compile(made)
    complaints, native, completed = [], 0, 0
    with Host() as host:
        for case, expected in zip(made, host.run(made), strict=True):
            answer = engine.run_one(case)
            found = differences(case, expected, answer.outcome)
            if found:
                complaints.append(reproducer(case, found, engine.name))
            if expected.fault is None and not case.form.startswith(NOT_NATIVE):
                completed += 1
                native += answer.native
    assert not complaints, "\n".join(complaints[:3])
    assert completed > len(made) // 2
    if isinstance(engine, Jit):
        assert native > completed * 0.8, native / completed
