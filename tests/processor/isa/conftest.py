"""The engines every test of an instruction runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from tests.processor.isa.machine import After, interp
from tests.processor.isa.native import both

Run = Callable[..., After]


@pytest.fixture(params=[interp, both], ids=["interp", "jit"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs one instruction: see machine.interp and native.both."""
    return cast(Run, request.param)
