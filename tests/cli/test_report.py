"""`trapline report`: what it reads from, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.run import trapline
from tests.report.written import END, MAP, SITE, counts, start
from trapline.trace import TraceWriter


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A trace whose second line matters: without it the first process has no name."""
    writer = TraceWriter(str(tmp_path / "locks.jsonl"), {"tool": "test"})
    second = {**SITE, "site": 2, "rip": 0x401010, "next_rip": 0x401014}
    writer.write(start(), MAP, SITE, counts(137), second, counts(43, 2), END)
    writer.close()
    return tmp_path / "locks.jsonl"


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/proc/self/fd/0"])
def test_a_trace_on_a_pipe_is_read_whole(written, name):
    """A pipe gives its bytes once; what was read for the header does not come again."""
    wanted = trapline("report", written).stdout
    assert "180 bus locks at 2 sites in ./program -x" in wanted
    found = trapline("report", name, input=written.read_text())
    assert (found.returncode, found.stderr, found.stdout) == (0, "", wanted)


def test_standard_input_is_named_in_words():
    found = trapline("report", "-", input="hello\n")
    assert found.returncode == 2
    assert "standard input is not a Trapline trace" in found.stderr
