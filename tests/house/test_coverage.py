"""The pages that name tests: each named test exists, and the series' nine files are all there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.house.tree import ROOT

PAGES = ("docs/series.md", "docs/reference-coverage.md")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
SERIES = (
    *("kvm_host.h", "cpuid.c", "emulate.c", "svm/nested.c", "svm/svm.c"),
    *("vmx/nested.c", "vmx/vmx.c", "x86.c", "x86.h"),
)


@cache
def functions(path: Path) -> frozenset[str]:
    """The functions that a file defines."""
    if not path.exists():
        return frozenset()
    tree = ast.parse(path.read_text())
    return frozenset(one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef))


def missing(text: str) -> list[str]:
    """The tests that a page names in vain."""
    return [f"{path}::{name}" for path, name in NAMED.findall(text)
            if name not in functions(ROOT / path)]  # fmt: skip


def rows(text: str) -> list[list[str]]:
    """The cells of every row of the page's tables, headings left out."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [row for row in cells if row[0] not in ("rule", "file of the series", "quirk")]


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page):
    assert missing((ROOT / page).read_text()) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_row_has_a_test_or_says_that_it_is_not_done(page):
    found = rows((ROOT / page).read_text())
    assert len(found) >= len(SERIES)
    assert [row for row in found if not NAMED.search(row[-1]) and "not done" not in row[-1]] == []


def test_the_series_has_a_row_for_each_of_its_files():
    files = [row[0].strip("`") for row in rows((ROOT / "docs/series.md").read_text())]
    assert len(files) == len(SERIES)
    assert all(name.endswith(wanted) for name, wanted in zip(files, SERIES, strict=True))


def test_a_test_that_is_not_there_is_noticed():
    here = "tests/house/test_coverage.py"
    text = f"`{here}::missing` `{here}::test_nowhere` `tests/no_such.py::test_it`"
    assert missing(text) == [f"{here}::test_nowhere", "tests/no_such.py::test_it"]
