"""What holds for all tests: how Hypothesis runs, and that signals are as they were afterwards."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# No deadline, since the machine may be busy; failures reproducible.
settings.register_profile("trapline", deadline=None, print_blob=True)
settings.load_profile("trapline")


@pytest.fixture(scope="module", autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """The hypervisor over /dev/kvm blocks the signal of its kicks on the thread that runs a vCPU,
    and programs that later tests start from that thread would inherit that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) - before
    while blocked and signal.sigtimedwait(blocked, 0) is not None:
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
