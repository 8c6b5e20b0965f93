"""The bench on which the hypervisor is tried without a processor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kvm.scripted.bench import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.vm.close()
    assert made.backend.is_closed
