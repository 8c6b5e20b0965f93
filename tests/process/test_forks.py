"""A program may fork while its other threads are anywhere in the VMM: nothing they hold may be
needed in the child."""

from __future__ import annotations

import ast

import pytest

from tests.house.tree import everything

ROOMS = ("arch", "processor", "kvm", "process", "trace")


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_that_guests_threads_run_has_a_lock_of_the_librarys(room: str) -> None:
    """Up to Python 3.11 a cached_property has one for all instances, which no child renews."""
    found = [
        source.path
        for source in everything()
        if source.path.startswith(f"src/trapline/{room}/")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.module == "functools"
        for name in node.names
        if name.name == "cached_property"
    ]
    assert not found
