"""What the pages for readers point at: every path exists, and the tour passes every room."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.imports import MAY_USE
from tests.house.tree import PACKAGE, ROOT

TOP = {"src", "tests", "docs", "scripts", "benchmarks", ".ci"}
QUOTED = re.compile(r"`([\w.*/-]+)`")
LINKED = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def missing(text: str, folder: Path) -> list[str]:
    """The paths that a page quotes from the root or from the package, or links to, in vain."""
    quoted = {
        path: (ROOT, PACKAGE)
        for path in QUOTED.findall(text)
        if "/" in path.strip("/") and path.split("/")[0] in TOP | set(MAY_USE)
    }
    linked = dict.fromkeys(LINKED.findall(text), (folder,))
    return [
        path
        for path, starts in {**quoted, **linked}.items()
        if not any(list(start.glob(path.rstrip("/"))) for start in starts)
    ]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_path_on_a_page_exists(page):
    assert missing(page.read_text(), page.parent) == []


def test_the_tour_passes_every_room():
    tour = (ROOT / "docs" / "tour.md").read_text()
    assert [room for room in MAY_USE if f"`{room}" not in tour and f"/{room}/" not in tour] == []


def test_a_path_that_is_not_there_is_noticed():
    text = "`arch/debug.py` `arch/nowhere.py` `a/b` [style](style.md) [lost](lost.md#there)"
    assert missing(text, ROOT / "docs") == ["arch/nowhere.py", "lost.md"]
