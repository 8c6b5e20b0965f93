"""Both engines run under SVM."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["interp", "jit"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)
