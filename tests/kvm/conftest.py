"""The hypervisors the tests run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kvm.host import open_host
from trapline.kvm import Kvm, open_kvm
from trapline.kvm.host import HostKvm
from trapline.kvm.host import is_pvm as host_is_pvm


def _opened(name: str) -> Kvm:
    """The hypervisor, or a skip that says why there is none."""
    return open_host() if name == "host" else open_kvm(engine=name)


def is_pvm(kvm: Kvm) -> bool:
    """Whether this is the host's KVM, and one that does some things otherwise than processors."""
    return isinstance(kvm, HostKvm) and host_is_pvm()


@pytest.fixture(params=["interp", "jit", "host"])
def kvm(request: pytest.FixtureRequest) -> Iterator[Kvm]:
    """Ours, with either engine, and the host's."""
    opened = _opened(request.param)
    yield opened
    opened.close()


@pytest.fixture(params=["interp", "jit"])
def software(request: pytest.FixtureRequest) -> Iterator[Kvm]:
    """Ours, with either engine."""
    yield _opened(request.param)


@pytest.fixture
def host() -> Iterator[Kvm]:
    opened = _opened("host")
    yield opened
    opened.close()
