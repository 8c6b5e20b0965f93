"""The hypervisors a debugger is tried on: both vendors, both engines."""

from __future__ import annotations

import pytest

from tests.kvm.debugger.support import AMD, INTEL
from trapline.kvm import Kvm, open_kvm


@pytest.fixture(params=[INTEL, AMD])
def vendor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["interp", "jit"])
def kvm(vendor: str, request: pytest.FixtureRequest) -> Kvm:
    return open_kvm(cpu=vendor, engine=request.param)
