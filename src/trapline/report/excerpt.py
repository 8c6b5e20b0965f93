"""The source lines around a culprit, if the file is still there to be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from trapline.trace import Location

AROUND = 1
LONGEST_FILE = 4 << 20
CHECKOUT = 60  # seconds: a checkout or an installation writes files in any order


class Excerpt(NamedTuple):
    """Numbered lines, which of them is meant, and whether the file is newer than the program."""

    lines: list[tuple[int, str]]
    line: int
    is_newer: bool


def find_excerpt(where: Location) -> Excerpt | None:
    """The lines around a location; a relative path is looked for beside the module, too."""
    if where.file is None or where.line is None:
        return None
    for path in _candidates(where):
        try:
            if path.stat().st_size > LONGEST_FILE or not path.is_file():
                continue
            text = path.read_text(errors="replace").splitlines()
            module = Path(where.module) if where.module is not None else path
            is_newer = _changed(path) > _changed(module) + CHECKOUT
        except OSError:
            continue
        if where.line > len(text):
            return None
        first = max(where.line - AROUND, 1)
        numbers = range(first, min(where.line + AROUND, len(text)) + 1)
        lines = [(number, text[number - 1].expandtabs(4).rstrip()) for number in numbers]
        return Excerpt(lines, where.line, is_newer)
    return None


def _candidates(where: Location) -> list[Path]:
    file = where.file or ""
    if os.path.isabs(file) or where.module is None:
        return [Path(file)]
    return [Path(where.module).parent / file, Path(file)]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")
