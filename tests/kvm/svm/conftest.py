"""The hypervisor on an AMD processor, under the names that the other tests know."""

from __future__ import annotations

import pytest

from trapline.kvm import Kvm, open_kvm

ENGINES = ["interp", "jit"]
INTEL, AMD = "sapphire-rapids", "zen5"


@pytest.fixture(params=ENGINES)
def software(request: pytest.FixtureRequest) -> Kvm:
    return open_kvm(cpu=AMD, engine=request.param)


@pytest.fixture
def kvm(software: Kvm) -> Kvm:
    return software


@pytest.fixture(params=[(cpu, engine) for cpu in (INTEL, AMD) for engine in ENGINES])
def named(request: pytest.FixtureRequest) -> tuple[str, Kvm]:
    """A vendor's model, for what is not the same on both."""
    cpu, engine = request.param
    return cpu, open_kvm(cpu=cpu, engine=engine)
