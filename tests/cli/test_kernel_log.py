"""The kernel's line, and the kernel's limit on it."""

from __future__ import annotations

import os
import time

import pytest

from trapline.cli.kernel_log import KernelLog


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


def test_the_line_is_the_kernels_byte_for_byte(clock):
    assert KernelLog().bus_lock("steamcmd", 4242, 0xF37A7C54) == (
        "x86/split lock detection: #DB: steamcmd/4242 took a bus_lock trap at address: 0xf37a7c54\n"
    )


def test_ten_lines_in_five_seconds_then_how_many_were_suppressed(clock):
    log = KernelLog()
    said = [log.bus_lock("x", 1, n) for n in range(1076)]
    assert [bool(line) for line in said] == [True] * 10 + [False] * 1066
    clock.now += 4.9
    assert log.bus_lock("x", 1, 0) == ""
    clock.now += 0.1
    first, second = log.bus_lock("x", 1, 0x10).splitlines()
    assert first == "handle_bus_lock: 1067 callbacks suppressed"
    assert second.endswith("0x10")
    clock.now += 5
    assert len(log.bus_lock("x", 1, 0).splitlines()) == 1


def test_processes_share_the_limit(clock):
    """As they do the kernel's log: one ratelimit state (lib/ratelimit.c) for the machine."""
    log = KernelLog()
    said = [bool(log.bus_lock("x", 1, 0)) for _ in range(4)]
    child = os.fork()
    if not child:
        os._exit(sum(bool(log.bus_lock("x", 2, 0)) for _ in range(20)))
    said.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6)
    assert all(said)
    assert log.bus_lock("x", 1, 0) == ""
    clock.now += 5
    assert log.bus_lock("x", 1, 0).startswith("handle_bus_lock: 15 callbacks suppressed\n")
