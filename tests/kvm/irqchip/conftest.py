"""The hypervisors of this folder's tests: both vendors, and where it matters both engines."""

from __future__ import annotations

import pytest

from trapline.kvm import Kvm, open_kvm

INTEL, AMD = "sapphire-rapids", "zen5"


@pytest.fixture(params=[INTEL, AMD])
def kvm(request: pytest.FixtureRequest) -> Kvm:
    return open_kvm(cpu=request.param)


@pytest.fixture(params=[(cpu, engine) for cpu in (INTEL, AMD) for engine in ("jit", "interp")])
def any_kvm(request: pytest.FixtureRequest) -> Kvm:
    cpu, engine = request.param
    return open_kvm(cpu=cpu, engine=engine)
