"""How long files and functions may be. The tables at the top are the exceptions, with reasons."""

from __future__ import annotations

import ast

from tests.house.rules import FILE_LINES, FUNCTION_LINES, file_length, function_length
from tests.house.tree import Source, everything

# path: (lines it may have, why it is still one idea)
LONG_FILES: dict[str, tuple[int, str]] = {}

# path::qualified name: (lines it may have, why it is still one step)
LONG_FUNCTIONS: dict[str, tuple[int, str]] = {}


def overlong_files(exceptions: dict[str, tuple[int, str]]) -> list[str]:
    return [
        f"{source.path} has {file_length(source)} lines"
        for source in everything()
        if file_length(source) > exceptions.get(source.path, (FILE_LINES, ""))[0]
    ]


def overlong_functions(exceptions: dict[str, tuple[int, str]]) -> list[str]:
    found = []
    for source in everything():
        for name, function in source.functions():
            place = f"{source.path}::{name}"
            length = function_length(function)
            if length > exceptions.get(place, (FUNCTION_LINES, ""))[0]:
                found.append(f"{place} has {length} lines")
    return found


def test_files_are_short():
    found = overlong_files(LONG_FILES)
    assert not found, "\n".join(found)


def test_functions_are_short():
    found = overlong_functions(LONG_FUNCTIONS)
    assert not found, "\n".join(found)


def test_every_exception_is_needed_and_has_a_reason():
    needed = "\n".join(overlong_files({}) + overlong_functions({}))
    for place, (limit, reason) in {**LONG_FILES, **LONG_FUNCTIONS}.items():
        assert f"{place} has " in needed, f"{place} needs no exception"
        assert limit > FUNCTION_LINES
        assert len(reason.split()) >= 4, f"{place} gives no reason"


def test_a_function_is_measured_without_decorators_and_docstring():
    text = '@cache\ndef f():\n    """Why.\n\n    More.\n    """\n    x = 1\n    return x\n'
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert function_length(function) == 3


def test_methods_and_nested_functions_are_found_by_their_names():
    text = "class A:\n    def f(self):\n        def g(): ...\n"
    assert [name for name, _ in Source("x.py", text).functions()] == ["A.f", "A.f.g"]
