"""Both engines."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["interp", "jit"])
def engine(request: pytest.FixtureRequest) -> str:
    """The name of an engine."""
    return str(request.param)
