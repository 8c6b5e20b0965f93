"""The hypervisors of this folder's tests: both vendors, where it matters both engines, and the
host's KVM where its answer is the manual's too."""

from __future__ import annotations

import pytest

from tests.kvm.host import open_host
from trapline.kvm import Kvm, open_kvm

INTEL, AMD = "sapphire-rapids", "zen5"
EACH = [(cpu, engine) for cpu in (INTEL, AMD) for engine in ("jit", "interp")]


@pytest.fixture(params=[INTEL, AMD])
def software(request: pytest.FixtureRequest) -> Kvm:
    return open_kvm(cpu=request.param)


@pytest.fixture(params=[INTEL, AMD, "host"])
def kvm(request: pytest.FixtureRequest) -> Kvm:
    return open_host() if request.param == "host" else open_kvm(cpu=request.param)


@pytest.fixture(params=EACH, ids="-".join)
def any_software(request: pytest.FixtureRequest) -> Kvm:
    cpu, engine = request.param
    return open_kvm(cpu=cpu, engine=engine)


@pytest.fixture(params=[*EACH, ("host", "")], ids="-".join)
def any_kvm(request: pytest.FixtureRequest) -> Kvm:
    cpu, engine = request.param
    return open_host() if cpu == "host" else open_kvm(cpu=cpu, engine=engine)
