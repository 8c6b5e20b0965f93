"""Every form's cases on the host, on the fast and on the reference engine: all answers are one.

TRAPLINE_DEEP=1000 runs a thousand times as many cases.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.against.addressing import EPOCH
from tests.against.cases import cases
from tests.against.compare import differences, reproducer, text
from tests.against.coverage import NOT_IMPLEMENTED, Tally
from tests.against.engines import Answer, Engine, Interp, Jit
from tests.against.forms import Form, all_forms
from tests.against.host import Host
from tests.against.state import Case, Fault, Outcome

EPOCHS = max(1, int(os.environ.get("TRAPLINE_DEEP") or 0))
TOGETHER = 24  # forms a test: LLVM and the worker are fed in large pieces
SHOWN = 2  # reproducers of one form
UNDEFINED = Fault(6)


def groups(bits: int) -> list[tuple[Form, ...]]:
    forms = all_forms(bits)
    return [forms[start : start + TOGETHER] for start in range(0, len(forms), TOGETHER)]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as running:
        yield running


@pytest.fixture(scope="module")
def jit() -> Iterator[Jit]:
    engine = Jit()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def interp() -> Iterator[Interp]:
    engine = Interp()
    yield engine
    engine.close()


class Judge:
    """Holds the answers of the engines against the host's."""

    def __init__(self, forms: tuple[Form, ...]) -> None:
        self.tallies = {
            form.name: Tally(form.name, form.bits, form.mnemonic_name) for form in forms
        }
        self.complaints: dict[str, list[str]] = {}

    def complain(self, form: str, complaint: str) -> None:
        self.complaints.setdefault(form, []).append(complaint)

    def judge(self, engine: str, case: Case, wanted: Outcome, answer: Answer) -> None:
        tally = self.tallies[case.form]
        tally.count(engine, answer.native)
        if answer.undefined is not None and wanted.fault != UNDEFINED:
            self._judge_refusal(engine, case, answer)
            return
        found = differences(case, wanted, answer.outcome)
        if found:
            self.complain(case.form, reproducer(case, found, engine))
        elif answer.outcome.fault is None:
            tally.done += 1

    def _judge_refusal(self, engine: str, case: Case, answer: Answer) -> None:
        """What is not implemented raises #UD, by name, and changes nothing."""
        self.tallies[case.form].refused += 1
        outcome = answer.outcome
        before = Outcome(case.registers, case.entry, outcome.flags, case.fx, outcome.memory)
        before.fault = UNDEFINED
        found = differences(case, before, outcome)
        if found or not answer.undefined:
            self.complain(case.form, f"not refused cleanly: {reproducer(case, found, engine)}")

    def close(self) -> None:
        """What only all cases of a form tell."""
        for tally in self.tallies.values():
            if tally.refused and tally.done:
                self.complain(tally.form, "implemented for some operands, refused for others")
            if tally.refused and tally.mnemonic not in NOT_IMPLEMENTED:
                self.complain(tally.form, "is not implemented, and not listed as such")
            if not tally.refused and tally.mnemonic in NOT_IMPLEMENTED:
                self.complain(tally.form, "is implemented: take it off coverage.NOT_IMPLEMENTED")

    def report(self) -> str:
        lines = []
        for form, complaints in self.complaints.items():
            lines.append(f"{form}: {len(complaints)} complaints, of which:")
            lines += complaints[:SHOWN]
        return "\n".join(lines)


def run(engine: Engine, made: list[Case]) -> Iterator[Answer]:
    for case in made:
        try:
            yield engine.run_one(case)
        except Exception as error:
            error.add_note(f"{engine.name}, {case.form}: {text(case)} ({case.code.hex(' ')})")
            raise


@pytest.mark.parametrize(
    "forms",
    [*groups(64), *groups(32)],
    ids=lambda forms: f"{forms[0].name} to {forms[-1].name}".replace(" (32)", " 32-bit"),
)
def test_engines_agree_with_the_host(
    forms: tuple[Form, ...],
    host: Host,
    jit: Jit,
    interp: Interp,
    record_property: Callable[[str, object], None],
) -> None:
    judge = Judge(forms)
    for epoch in range(EPOCHS):
        made = [one for form in forms for one in cases(form, EPOCH, first=epoch * EPOCH)]
        wanted = host.run(made)
        jit.compile(made)
        for engine in (jit, interp):
            for case, expected, answer in zip(made, wanted, run(engine, made), strict=True):
                judge.judge(engine.name, case, expected, answer)
    judge.close()
    for tally in judge.tallies.values():
        record_property("tally", tally.as_dict())
    assert not judge.complaints, "\n" + judge.report()


@pytest.mark.parametrize("bits", [64, 32])
def test_no_group_leaves_a_form_out(bits: int) -> None:
    assert [form for group in groups(bits) for form in group] == list(all_forms(bits))
