"""Every recording of every form is well formed, and every description is reached by a form."""

from __future__ import annotations

import pytest

import trapline.processor.isa  # noqa: F401  (registers the instructions)
from tests.processor.language.forms import every_form
from trapline.processor.language import INSTRUCTIONS, record
from trapline.processor.language.check import GrammarError, check
from trapline.processor.state import INDEX


@pytest.mark.parametrize("bitness", [16, 32, 64])
def test_every_recording_is_well_formed(bitness: int) -> None:
    complaints = []
    for form, code in every_form(bitness).items():
        if form.name not in INSTRUCTIONS:
            continue
        try:
            check(form, record(form), INDEX)
        except GrammarError as error:
            complaints.append(f"{code.hex()}: {error}")
    assert not complaints, "\n".join(complaints[:20])


def test_the_forms_are_many() -> None:
    """So that the test above cannot pass by finding nothing."""
    described = [form for form in every_form(64) if form.name in INSTRUCTIONS]
    assert len(described) > 2000


def test_every_description_is_reached() -> None:
    """A name the decoder does not use would be a description nobody ever runs."""
    reached = {form.name for bitness in (16, 32, 64) for form in every_form(bitness)}
    assert set(INSTRUCTIONS) - reached == set()


def test_recording_twice_gives_the_same() -> None:
    """Engines keep recordings by form: a description must depend on nothing else."""
    for form in every_form(64):
        if form.name in INSTRUCTIONS:
            assert str(record(form)) == str(record(form))


def test_every_instruction_says_what_it_does() -> None:
    silent = [name for name, entry in INSTRUCTIONS.items() if not entry.describe.__doc__]
    assert silent == []
