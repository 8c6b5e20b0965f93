"""The command's manners: help that teaches, one plain sentence for a mistake, the right status."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.run import TRAPLINE, trapline
from tests.report.written import END, MAP, SITE, counts, start
from trapline import __version__
from trapline.cli import doctor
from trapline.cli.entry import VERBS
from trapline.trace import TraceWriter


@pytest.fixture
def trace(tmp_path: Path) -> str:
    writer = TraceWriter(str(tmp_path / "trace.jsonl"), {})
    writer.write(start(), MAP, SITE, counts(5), END)
    writer.close()
    return writer.path


def test_version():
    assert trapline("--version").stdout == f"trapline {__version__}\n"


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_teaches(verb):
    done = trapline(*verb.split(), "--help")
    assert done.returncode == 0
    assert "usage: trapline" in done.stdout
    if verb in ("", "trace", "report"):
        assert "examples:\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "sentence", "hint"),
    [
        ((), "the following arguments are required: VERB", "trapline --help"),
        (("fly",), "argument VERB: invalid choice: 'fly' (choose from "
         f"{', '.join(map(repr, VERBS))})", "trapline --help"),
        (("trace",), "no program to trace", "trapline trace -- PROGRAM [ARGS...]"),
        (("trace", "--"), "no program to trace", "trapline trace -- PROGRAM [ARGS...]"),
        (("trace", "--policy", "maybe", "true"), "argument --policy: 'maybe' is none of off, warn, "
         "fatal, ratelimit:N (N from 1 to 1000)", "trapline trace --help"),
        (("trace", "--policy", "ratelimit:1001", "true"), "argument --policy: 'ratelimit:1001' is "
         "none of off, warn, fatal, ratelimit:N (N from 1 to 1000)", "trapline trace --help"),
        (("trace", "--error-exitcode", "256", "true"), "argument --error-exitcode: '256' is no "
         "exit status from 1 to 255", "trapline trace --help"),
        (("report", "/no/such"), "cannot read /no/such: No such file or directory",
         "trapline trace --output FILE -- PROGRAM writes one"),
        (("report", "/"), "/ is a directory, not a trace file",
         "trapline trace --output FILE -- PROGRAM writes one"),
        (("report", "/etc/passwd"), "/etc/passwd is not a Trapline trace",
         "trapline trace --output FILE -- PROGRAM writes one"),
        (("report",), "the following arguments are required: FILE", "trapline report --help"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_a_hint(arguments, sentence, hint):
    done = trapline(*arguments)
    assert done.returncode == 2
    assert done.stderr == f"trapline: {sentence}\n  help: {hint}\n"
    assert done.stdout == ""


def test_a_report_goes_to_stdout(trace):
    done = trapline("report", trace)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 split locks" in done.stdout
    assert "\x1b" not in done.stdout
    assert trapline("report", trace, "--format", "json").stdout.startswith('{\n  "version": 1,')


def test_top_is_obeyed(trace):
    assert "   culprit" in trapline("report", trace, "--top", "1").stdout
    with open(trace, "a") as stream:
        stream.write(json.dumps({**SITE, "site": 2, "rip": 0x401100}) + "\n")
    done = trapline("report", trace, "--top", "1")
    assert done.stdout.count("   culprit") == 1
    assert "2. 1 split lock in" in done.stdout
    assert trapline("report", trace, "--top", "0").stdout.count("   culprit") == 2


def test_a_reader_that_goes_away_ends_the_report_quietly(trace):
    reader, writer = os.pipe()
    os.close(reader)
    done = trapline("report", trace, stdout=writer, stderr=subprocess.PIPE, capture_output=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_under_stdout_is_one_sentence(trace):
    with open("/dev/full", "w") as full:
        done = trapline("report", trace, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode == 2
    assert done.stderr == "trapline: cannot go on: No space left on device\n"


@pytest.mark.parametrize("descriptor", [1, 2])
def test_closed_streams_are_no_disaster(trace, descriptor):
    command = " ".join([*TRAPLINE, "report", trace, f"{descriptor}>&-"])
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == (2 if descriptor == 1 else 0)  # without stdout the report is lost
    assert "Traceback" not in done.stderr


def test_reports_do_not_load_the_processor(trace):
    code = (
        "import sys; from trapline.cli import main; main(); "
        "sys.exit(any(name in sys.modules for name in ('llvmlite', 'iced_x86')))"
    )
    done = subprocess.run(
        [TRAPLINE[0], "-c", code, "report", trace], capture_output=True, timeout=60
    )
    assert done.returncode == 0


def test_doctor_says_what_there_is():
    done = trapline("doctor")
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line[0] != " ")
    assert facts["trapline"] == __version__
    assert {"python", "llvmlite", "processor", "bus_lock_detect", "/dev/kvm", "cache"} <= set(facts)
    assert done.returncode == 0
    with open("/proc/cpuinfo") as stream:
        is_there = "bus_lock_detect" in stream.read()
    assert facts["bus_lock_detect"].startswith("yes" if is_there else "no")


@pytest.mark.parametrize(
    ("lacking", "found", "status"),
    [
        ((), "yes", 0),
        (("sse4_2", "popcnt"), "no, POPCNT, SSE4.2 missing", 1),
        (("pni",), "no, SSE3 missing", 1),
    ],
)
def test_doctor_names_what_the_processor_lacks(lacking, found, status, monkeypatch, capsys):
    """x86-64 psABI, "Micro-Architecture Levels"."""
    all_of_it = {*doctor.LEVEL_2, "fpu", "sse", "sse2", "avx"}
    flags = all_of_it - {*lacking}
    fields = [("model name", "a processor"), ("flags", " ".join(flags))]
    monkeypatch.setattr(doctor, "_cpuinfo", lambda: iter(fields))
    assert doctor.run(argparse.Namespace()) == status
    facts = dict(
        line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line[0] != " "
    )
    assert facts["x86-64-v2"] == found


def test_doctor_sees_the_cache_folder_that_is_set(tmp_path):
    folder = tmp_path / "cache"
    environment = {**os.environ, "TRAPLINE_CACHE": str(folder)}
    assert f"{folder}: not there yet" in trapline("doctor", env=environment).stdout
    folder.mkdir()
    (folder / "pack").write_bytes(bytes(2_000_000))
    assert f"{folder}: 1 files, 2.0 MB" in trapline("doctor", env=environment).stdout
