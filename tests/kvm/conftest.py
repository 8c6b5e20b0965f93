"""The hypervisors the tests run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trapline.kvm import Kvm, open_kvm


def opened(backend: str) -> Kvm:
    """The hypervisor, or a skip that says why there is none."""
    try:
        return open_kvm(backend)
    except OSError as error:
        pytest.skip(f"/dev/kvm does not open: {error}")


@pytest.fixture
def host() -> Iterator[Kvm]:
    kvm = opened("host")
    yield kvm
    kvm.close()
