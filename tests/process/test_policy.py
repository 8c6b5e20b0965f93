"""Policies, as Linux's split_lock_detect= has them."""

from __future__ import annotations

import os
import signal
import time

import pytest

from trapline.process import Policy, parse_policy


@pytest.mark.parametrize(
    ("text", "mode", "rate", "detects", "warns"),
    [
        ("off", "off", 0, False, False),
        ("warn", "warn", 0, True, True),
        ("fatal", "fatal", 0, True, False),
        ("ratelimit:1", "ratelimit", 1, True, True),
        ("ratelimit:1000", "ratelimit", 1000, True, True),
    ],
)
def test_policies(text: str, mode: str, rate: int, detects: bool, warns: bool) -> None:
    policy = parse_policy(text)
    assert (policy.mode, policy.rate) == (mode, rate)
    assert (policy.detects, policy.warns) == (detects, warns)


@pytest.mark.parametrize(
    "text", ["", "on", "warn:3", "ratelimit", "ratelimit:", "ratelimit:0", "ratelimit:1001"]
)
def test_what_is_no_policy_is_refused_with_the_possibilities(text: str) -> None:
    with pytest.raises(ValueError, match="off, warn, fatal or ratelimit:N"):
        parse_policy(text)


def test_fatal_asks_for_sigbus_and_the_others_for_nothing() -> None:
    assert parse_policy("fatal").apply() == 7
    assert parse_policy("warn").apply() == 0
    assert parse_policy("ratelimit:5").apply() == 0


def test_a_rate_holds_back_what_exceeds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three a second: the fourth waits for the next second, in steps of 20 ms as in the kernel."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def sleep(seconds: float) -> None:
        assert seconds == 0.02
        clock[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    policy = Policy("ratelimit", 3)
    times = []
    for _ in range(7):
        policy.apply()
        times.append(clock[0] - 100)
    assert times[:3] == [0, 0, 0]
    assert all(1 <= moment < 1.05 for moment in times[3:6])
    assert 2 <= times[6] < 2.1


def test_the_rate_is_that_of_all_processes_together() -> None:
    """Three children want twelve each at ten a second: the last comes three seconds after the
    first, however slow the machine.  One killed at any point holds up nobody."""
    policy = Policy("ratelimit", 10)
    started = time.monotonic()
    victim = os.fork()
    if not victim:
        while True:
            policy.apply()
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    children = []
    for _ in range(3):
        children.append(os.fork())
        if not children[-1]:
            for _ in range(12):
                policy.apply()
            os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert time.monotonic() - started >= 2.99  # 36 at most ten in each interval: in the fourth
