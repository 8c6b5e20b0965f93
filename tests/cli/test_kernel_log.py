"""The kernel's line, and the kernel's limit on it."""

from __future__ import annotations

import pytest

from trapline.cli import kernel_log
from trapline.cli.kernel_log import KernelLog


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(kernel_log.time, "monotonic", lambda: Clock.now)
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


def test_a_child_has_its_own_limit(clock):
    log = KernelLog()
    for _ in range(20):
        log.bus_lock("x", 1, 0)
    log.forked()
    assert log.bus_lock("x", 2, 0)
