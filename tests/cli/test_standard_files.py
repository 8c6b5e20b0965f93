"""Standard input, output and error that are closed are closed to the program, natively and here."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.run import COMPILING, TRAPLINE


def closed(closing: str, *command: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell does that has been told `<&-` and its like."""
    script = f'exec "$@" {closing}'
    shell = ["/bin/sh", "-c", script, "sh", *map(str, command)]
    done = subprocess.run(shell, capture_output=True, text=True, input="in\n", timeout=120)
    lines = done.stderr.splitlines(keepends=True)
    done.stderr = "".join(line for line in lines if not line.startswith((COMPILING, "trapline: ")))
    return done


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    "command",
    [["/bin/cat"], ["/bin/echo", "hi"], ["/bin/sh", "-c", "echo hi; echo ho >&2; exit 7"]],
)
def test_what_is_closed_stays_closed(closing: str, command: list[str]) -> None:
    natively = closed(closing, *command)
    traced = closed(closing, *TRAPLINE, "trace", "--", *command)
    assert (traced.stdout, traced.stderr) == (natively.stdout, natively.stderr)
    assert traced.returncode == natively.returncode


@pytest.mark.parametrize("closing", ["<&-", "<&- >&- 2>&-"])
def test_no_file_of_ours_takes_the_place(closing: str, tmp_path: Path) -> None:
    """Whatever else Trapline holds open: the program sees the numbers free."""
    options = ["--output", tmp_path / "trace", "--report-file", tmp_path / "report"]
    command = ["/bin/ls", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"]
    natively = closed(closing, *command)
    traced = closed(closing, *TRAPLINE, "trace", *options, "--", *command)
    assert (traced.returncode, traced.stdout) == (natively.returncode, natively.stdout)
    assert "no bus locks" in (tmp_path / "report").read_text()
