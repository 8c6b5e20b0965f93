"""Names, faces, docstrings and budgets: one function a rule, each yielding its complaints."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.house.tree import Function, Source

LINE_WIDTH = 100
FILE_LINES = 400
FUNCTION_LINES = 40
DOCSTRING_LINES = 4

REFUSED_PARAMETERS = {"addr", "val", "tmp", "ctx", "info", "data2"}
LEFT_OPEN = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")  # not matching itself
BANNER = re.compile(r"^\s*#\s*([-=*#~])\1{3,}")


def long_lines(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.lines, 1):
        if len(line) > LINE_WIDTH:
            yield f"{source.path}:{number} is {len(line)} columns wide"


def file_length(source: Source) -> int:
    return len(source.lines)


def function_length(function: Function) -> int:
    """Lines from `def` to the end, without decorators and docstring."""
    assert function.end_lineno is not None
    length = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None and first.end_lineno is not None:
        length -= first.end_lineno - first.lineno + 1
    return length


def refused_parameters(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.arg) and node.arg in REFUSED_PARAMETERS:
            yield f"{source.path}:{node.lineno} calls a parameter {node.arg}"


def face(source: Source) -> Iterator[str]:
    """Everything in a face that is neither docstring, import nor list of names."""
    for node in source.tree.body:
        match node:
            case ast.Expr(ast.Constant(str())) | ast.Import() | ast.ImportFrom():
                continue
            case ast.Assign([ast.Name("__all__" | "__version__")]):
                continue
        yield f"{source.path}:{node.lineno} holds more than names"


def docstring(source: Source) -> Iterator[str]:
    text = ast.get_docstring(source.tree)
    if text is None:
        yield f"{source.path} does not open with a docstring"
        return
    count = sum(1 for line in text.splitlines() if line.strip())
    if count > DOCSTRING_LINES:
        yield f"{source.path} opens with {count} lines of docstring"


def left_open(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.lines, 1):
        if LEFT_OPEN.search(line):
            yield f"{source.path}:{number} leaves something open: {line.strip()}"
        if BANNER.search(line):
            yield f"{source.path}:{number} is a banner"
