"""What holds for all tests: how Hypothesis runs, how many cases are generated, and that signals are
as they were afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# No deadline, since the machine may be busy; failures reproducible.
settings.register_profile("trapline", deadline=None, print_blob=True)
settings.load_profile("trapline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--deep", type=int, metavar="N", help="generate N times as many cases (as TRAPLINE_DEEP=N)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Before the modules that count their cases are imported, here and in the workers."""
    deep = config.getoption("deep")
    if deep:
        os.environ["TRAPLINE_DEEP"] = str(deep)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background by a shell.  The tests press Ctrl-C, so to speak.
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
