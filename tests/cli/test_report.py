"""`trapline report`: what it reads from, and how it ends."""

from __future__ import annotations

import os
import subprocess
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


def test_a_closed_stdout_is_no_success(written):
    found = trapline("report", written, preexec_fn=lambda: os.close(1), capture_output=False,
                     stderr=subprocess.PIPE)  # fmt: skip
    assert found.returncode == 2
    assert found.stderr == "trapline: cannot write the report: stdout is closed\n"


@pytest.mark.parametrize("number", ["-1", "x", "1.5", ""])
def test_top_is_a_number_of_sites(written, number):
    found = trapline("report", written, f"--top={number}")
    assert found.returncode == 2
    assert "argument --top" in found.stderr


@pytest.mark.parametrize("name", ["same", "link", "./same"])
def test_one_file_cannot_be_the_trace_and_the_report(tmp_path, name):
    (tmp_path / "same").write_text("kept")
    os.link(tmp_path / "same", tmp_path / "link")
    found = trapline("trace", "--output", "same", "--report-file", name, "--", "/bin/true",
                     cwd=tmp_path)  # fmt: skip
    assert found.returncode == 2
    assert found.stderr == (
        f"trapline: {name} cannot be both the trace and the report\n"
        "  help: give --output and --report-file two files\n"
    )
    assert (tmp_path / "same").read_text() == "kept"


def test_one_file_that_is_not_there_yet_is_refused_too(tmp_path):
    found = trapline("trace", "--output", "new", "--report-file", tmp_path / "new", "--",
                     "/bin/true", cwd=tmp_path)  # fmt: skip
    assert found.returncode == 2
    assert not (tmp_path / "new").exists()


def test_a_full_disk_under_the_report_is_said_once():
    found = trapline("trace", "--report-file", "/dev/full", "--", "/bin/true")
    assert found.returncode == 0
    assert found.stderr == "trapline: cannot write the report: No space left on device\n"


def test_a_trace_without_an_ending_has_no_empty_brackets(tmp_path):
    writer = TraceWriter(str(tmp_path / "cut.jsonl"), {"tool": "test"})
    writer.write(start())
    writer.close()
    found = trapline("report", tmp_path / "cut.jsonl")
    assert found.stdout.splitlines()[0] == "trapline: no bus locks so far in ./program -x"
