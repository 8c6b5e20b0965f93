"""The hypervisor on both vendors' processors, with the forced-emulation prefix."""

from __future__ import annotations

import pytest

from trapline.kvm import Kvm, open_kvm

MODELS = {"intel": "sapphire-rapids", "amd": "zen5"}
MACHINES = [(vendor, engine) for vendor in MODELS for engine in ("interp", "jit")]


@pytest.fixture(params=MACHINES, ids=lambda pair: "-".join(pair))
def software(request: pytest.FixtureRequest) -> Kvm:
    vendor, engine = request.param
    return open_kvm(cpu=MODELS[vendor], engine=engine, force_emulation_prefix=1)


@pytest.fixture(params=MODELS)
def vendor(request: pytest.FixtureRequest) -> str:
    return str(request.param)
