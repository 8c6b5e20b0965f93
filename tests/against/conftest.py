"""Prints at the end of a run what was compared; works across the processes of pytest-xdist."""

from __future__ import annotations

from typing import Any

import pytest

from tests.against.coverage import Tally, table

_tallies: list[Tally] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        for name, value in report.user_properties:
            if name == "tally" and isinstance(value, dict):
                fields: dict[str, Any] = value
                _tallies.append(Tally(**fields))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _tallies:
        terminalreporter.section("instructions compared with the host")
        for line in table(_tallies):
            terminalreporter.write_line(line)
