"""`trapline trace` around a program: its streams, its status, its signals, and what goes wrong."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.run import DEMO, TRAPLINE, trapline

LOCKS = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static char line[128] __attribute__((aligned(64)));
int main(int count, char **arguments) {
    int times = atoi(arguments[1]);
    for (int i = 0; i < times; i++)
        __atomic_fetch_add((int *)(line + 62), 1, __ATOMIC_SEQ_CST);
    printf("counted\n");
    fflush(stdout);
    for (int i = 2; i < count; i++) {
        if (!strcmp(arguments[i], "wait")) pause();
        if (!strcmp(arguments[i], "kill")) kill(getpid(), SIGKILL);
        if (!strcmp(arguments[i], "abort")) abort();
        if (!strcmp(arguments[i], "exit")) return atoi(arguments[i + 1]);
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that takes as many split locks as it is told."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("locks")
    (folder / "locks.c").write_text(LOCKS)
    subprocess.run(["gcc", "-g", "-static", folder / "locks.c", "-o", folder / "locks"], check=True)
    return folder / "locks"


def heading(stderr: str) -> str:
    return next(line for line in stderr.splitlines() if line.startswith("trapline: "))


def test_a_clean_program_keeps_its_output_and_status():
    done = trapline("trace", "--", "/bin/echo", "hello", "--top", "x")
    assert done.stdout == "hello --top x\n"
    assert done.stderr == "trapline: no bus locks in /bin/echo hello --top x  (exit status 0)\n"
    assert done.returncode == 0


def test_the_programs_input_is_its_own():
    assert trapline("trace", "/bin/cat", input="from the user\n").stdout == "from the user\n"


def test_the_program_sees_the_descriptors_it_was_given_and_no_others(tmp_path):
    """Also where Trapline holds a trace in memory and a report file open."""
    given = os.open(tmp_path / "given", os.O_RDWR | os.O_CREAT)
    done = trapline(
        "trace", "--report-file", tmp_path / "report", "/bin/ls", "/proc/self/fd", pass_fds=[given]
    )
    os.close(given)
    own = {0, 1, 2, given}
    listed = min(set(range(100)) - own)  # the folder that ls itself has opened
    assert set(map(int, done.stdout.split())) == {*own, listed}


@pytest.mark.parametrize("status", [0, 1, 77])
def test_the_status_is_the_programs(locks, status):
    done = trapline("trace", locks, 3, "exit", status)
    assert done.returncode == status
    assert f"exit status {status}" in heading(done.stderr)


def test_bus_locks_may_decide_the_status(locks):
    assert trapline("trace", "--error-exitcode", 9, locks, 3).returncode == 9
    assert trapline("trace", "--error-exitcode", 9, locks, 0).returncode == 0
    assert trapline("trace", "--error-exitcode", 9, locks, 0, "exit", 4).returncode == 4


def test_warn_prints_the_kernels_line_at_the_address_after(locks, tmp_path):
    report = tmp_path / "report.json"
    done = trapline("trace", "--format", "json", "--report-file", report, locks, 2)
    (site,) = json.loads(report.read_text())["sites"]
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line == (
            f"x86/split lock detection: #DB: locks/{site['pids'][0]} took a bus_lock trap"
            f" at address: {site['reported_rip']:#x}"
        )


def test_fatal_is_sigbus_and_still_a_report(locks):
    done = trapline("trace", "--policy", "fatal", locks, 50)
    assert done.returncode == 128 + signal.SIGBUS
    assert done.stdout == ""
    assert heading(done.stderr).startswith("trapline: 1 bus lock at 1 site")
    assert f"killed by signal {int(signal.SIGBUS)}" in heading(done.stderr)


def test_off_counts_without_disturbing(locks):
    done = trapline("trace", "--policy", "off", locks, 100_000)
    assert done.returncode == 0
    assert heading(done.stderr).startswith("trapline: 100,000 bus locks at 1 site")
    assert "took a bus_lock trap" not in done.stderr


def test_ratelimit_delays(locks):
    started = time.monotonic()
    done = trapline("trace", "--policy", "ratelimit:20", locks, 50)
    assert heading(done.stderr).startswith("trapline: 50 bus locks")
    assert time.monotonic() - started > 2


@pytest.mark.parametrize(("how", "number"), [("kill", signal.SIGKILL), ("abort", signal.SIGABRT)])
def test_a_killed_program_still_has_its_report(locks, how, number):
    done = trapline("trace", "--policy", "off", locks, 500, how)
    assert done.returncode == 128 + number
    assert heading(done.stderr) == (
        f"trapline: 500 bus locks at 1 site in {locks} 500 {how}  (killed by signal {int(number)})"
    )


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_program_and_yields_a_report(locks, sent):
    process = subprocess.Popen(
        [*TRAPLINE, "trace", locks, "40", "wait"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "counted\n"
        if sent == signal.SIGINT:  # Ctrl-C goes to all processes of the terminal's group
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)
        stderr = process.stderr.read()
        assert process.wait(60) == 128 + sent
    assert "40 bus locks at 1 site" in stderr
    assert f"killed by signal {int(sent)}" in stderr


def test_a_trace_is_kept_and_printed_again(locks, tmp_path):
    kept = tmp_path / "locks.jsonl"
    done = trapline("trace", "--output", kept, locks, 1500)
    again = trapline("report", kept)
    report = done.stderr[done.stderr.index("trapline: ") :]
    assert again.stdout == report
    assert "1,500 split locks in main at" in again.stdout
    assert "note: Of single events, the first 1,000 of each process were kept" in again.stdout
    lines = kept.read_text().splitlines()
    assert json.loads(lines[0])["trapline_trace"] == 1
    assert sum('"record":"event"' in line for line in lines) == 1000


def test_a_pipe_as_output_gets_the_whole_trace(locks):
    done = trapline("trace", "--report-file", "/dev/null", "--output", "/dev/stderr", locks, 0)
    assert json.loads(done.stderr.splitlines()[0])["trapline_trace"] == 1
    assert json.loads(done.stderr.splitlines()[-1])["record"] == "end"


def test_the_report_can_go_to_a_file(locks, tmp_path):
    report = tmp_path / "report"
    done = trapline("trace", "--policy", "off", "--report-file", report, locks, 7)
    assert done.stderr == ""
    assert "7 split locks in main" in report.read_text()


@pytest.mark.parametrize(
    ("program", "status"),
    [("no-such-program", 127), ("/no/such/path", 127), ("/tmp", 126), ("/etc/passwd", 126)],
)
def test_what_cannot_be_run_is_one_sentence_and_the_shells_status(program, status):
    done = trapline("trace", "--", program)
    assert done.returncode == status
    assert done.stdout == ""
    sentence, hint = done.stderr.splitlines()
    assert sentence.startswith("trapline: ") and program in sentence
    assert hint.startswith("  help: ")


@pytest.mark.parametrize(
    "content", [b"", b"plain words\n", b"\x7fELF", b"\x7fELF\2\1\1" + bytes(57), os.urandom(300)]
)
def test_broken_programs_are_one_sentence(tmp_path, content):
    path = tmp_path / "broken"
    path.write_bytes(content)
    path.chmod(0o755)
    done = trapline("trace", path)
    assert done.returncode == 126
    assert done.stderr.startswith("trapline: ")
    assert len(done.stderr.splitlines()) == 2


def test_a_full_disk_under_output_is_one_sentence_and_what_was_recorded_is_readable(
    locks, tmp_path
):
    kept = tmp_path / "locks.jsonl"
    done = trapline(
        "trace", "--policy", "off", "--output", kept, locks, 2000,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900)),
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout == "counted\n"
    assert f"trapline: the trace {kept} is incomplete: " in done.stderr
    assert "Traceback" not in done.stderr
    assert kept.stat().st_size == 900
    again = trapline("report", kept)
    assert again.returncode == 0
    assert "The trace has no end" in again.stdout


@pytest.mark.parametrize(
    ("option", "path"),
    [
        ("--output", "/no/such/folder/x"),
        ("--output", "/proc/version"),
        ("--output", "/tmp"),
        ("--report-file", "/no/such/folder/x"),
        ("--report-file", "/tmp"),
    ],
)
def test_an_output_that_cannot_be_written_fails_before_the_program_runs(option, path):
    done = trapline("trace", option, path, "--", "/bin/echo", "ran")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"trapline: cannot write {path}: ")


@pytest.mark.parametrize("closing", ["2>&-", "2>/dev/full"])
def test_a_closed_or_full_stderr_loses_nothing(locks, tmp_path, closing):
    kept = tmp_path / "kept.jsonl"
    command = " ".join([*TRAPLINE, "trace", "--output", str(kept), str(locks), "30", closing])
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "counted\n")
    assert "30 bus locks" in trapline("report", kept).stdout


def test_the_demo_takes_exactly_its_bus_locks():
    done = trapline("demo", "--format", "json")
    assert done.returncode == 0
    text, _, document = done.stdout.partition("{")
    assert text.startswith("demo: counting") and "demo: done" in text
    report = json.loads("{" + document)
    counts = {site["function"]: site["count"] for site in report["sites"]}
    assert counts == {
        "count_hit": 350, "counter_in_a_buffer": 100, "ring_in_a_mapping": 10, "thread": 400,
    }  # fmt: skip
    assert report["bus_locks"] == 860
    for site in report["sites"]:
        assert site["file"] == "demo.c"
        source = (DEMO.parent / "demo.c").read_text().splitlines()
        assert "__atomic" in source[site["line"] - 1]


def test_the_demo_program_can_be_built_again(tmp_path):
    if not shutil.which("gcc") or not shutil.which("make"):
        pytest.skip("needs gcc and make")
    for name in ("demo.c", "linux.h", "Makefile"):
        shutil.copy(DEMO.parent / name, tmp_path)
    subprocess.run(["make", "-s", "demo"], cwd=tmp_path, check=True)
    built = subprocess.run([tmp_path / "demo"], capture_output=True, check=True, timeout=60)
    shipped = subprocess.run([DEMO], capture_output=True, check=True, timeout=60)
    assert built.stdout == shipped.stdout
    relocations = subprocess.run(["readelf", "-r", DEMO], capture_output=True, text=True).stdout
    assert "no relocations" in relocations


def test_a_limit_on_address_space_is_one_plain_sentence():
    limit = 800_000 << 10  # as `ulimit -v 800000`
    done = trapline(
        "trace",
        "/bin/true",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit,) * 2),
    )
    assert done.returncode == 126
    sentence, help_, *rest = done.stderr.splitlines()
    assert "no room to reserve" in sentence
    assert "ulimit -v" in help_
    assert not rest
