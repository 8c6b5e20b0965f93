"""Names, faces, docstrings: each rule over the tree, and over a file that breaks it."""

from __future__ import annotations

import pytest

from tests.house import rules
from tests.house.tree import Source, everything, package

MARK = "TO" + "DO"  # spelled so that this file does not break the rule itself


def check(rule, files):
    found = [complaint for source in files for complaint in rule(source)]
    assert not found, "\n".join(found)


def test_no_line_is_wider_than_the_budget():
    check(rules.long_lines, everything())


def test_no_parameter_has_a_name_that_says_nothing():
    check(rules.refused_parameters, everything())


def test_faces_hold_names_only():
    check(rules.face, (source for source in package() if source.is_face))


def test_every_file_says_what_it_knows():
    written = (source for source in everything() if source.text.strip())
    check(rules.docstring, written)
    empty = [source.path for source in package() if not source.text.strip()]
    assert not empty, "\n".join(empty)


def test_nothing_is_left_open():
    check(rules.left_open, everything())


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (rules.long_lines, "x = 1" + " " * 96),
        (rules.refused_parameters, "def read(addr): ..."),
        (rules.refused_parameters, "async def read(*, val): ..."),
        (rules.refused_parameters, "read = lambda ctx: ctx"),
        (rules.face, "def helper(): ..."),
        (rules.face, "NUMBER = 1"),
        (rules.face, "if True:\n    import trapline"),
        (rules.docstring, "x = 1"),
        (rules.docstring, '"""One\n\nTwo\nThree\nFour\nFive\n"""'),
        (rules.left_open, f"x = 1  # {MARK}: later"),
        (rules.left_open, "# -----------------"),
    ],
)
def test_a_broken_rule_is_noticed(rule, text):
    assert len(list(rule(Source("src/trapline/kvm/__init__.py", text)))) == 1


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (rules.refused_parameters, "def read(linear, size, *values): ..."),
        (rules.face, '"""Door."""\n\nfrom trapline.kvm.api import Kvm\n\n__all__ = ["Kvm"]'),
        (rules.docstring, '"""One\n\nTwo\nThree\nFour\n"""'),
        (rules.left_open, "x = 1  # two - three"),
    ],
)
def test_a_kept_rule_is_not_complained_about(rule, text):
    assert not list(rule(Source("src/trapline/kvm/__init__.py", text)))
