"""Signals of a guest program: the same as natively."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.process.c_programs import compiled
from tests.process.conftest import ROOT, Run


@pytest.mark.parametrize(
    "name",
    [
        "frame",
        "faults",
        "waiting",
        "ends",
        "timers",
        "leftovers",
        "wide_vectors",
        "storm",
        "mixture",
    ],
)
def test_a_program_sees_its_signals_as_natively(name: str, guest: Run, native: Run) -> None:
    """The frame: SDM-independent, arch/x86/kernel/signal_64.c; the rest: signal(7)."""
    program = compiled(name)
    expected, got = native(program), guest(program)
    assert got.stdout.decode() == expected.stdout.decode()
    assert (got.returncode, got.stderr) == (expected.returncode, expected.stderr)


SCRIPTS = [
    ["sh", "-c", "kill -SEGV $$"],
    ["sh", "-c", "trap 'echo caught; exit 4' TERM; kill $$; echo not reached"],
    [
        "bash",
        "-c",
        "trap 'echo bye' EXIT; trap '' HUP; kill -HUP $$; (kill -INT $BASHPID); echo $?",
    ],
    ["bash", "-c", "yes | head -2; echo ${PIPESTATUS[*]}"],
    [
        "bash",
        "-c",
        "set -m; sleep 60 & kill -STOP %1; until [[ $(jobs -s) ]]; do sleep 0.02; done; "
        "echo stopped; kill -CONT %1; kill %1; wait %1; echo $?",
    ],
    [
        "perl",
        "-e",
        '$SIG{ALRM} = sub { die "alarm\\n" }; eval { alarm 1; select undef, undef, undef, 30 }; '
        "print $@; $SIG{CHLD} = sub { $n++ }; for (1 .. 3) { fork or exit $_ } "
        "while ((my $p = wait) > 0) { $s += $? >> 8 } print qq($s\\n)",
    ],
    [
        "/usr/bin/python3",
        "-S",
        "-c",
        "import os, signal\n"
        "signal.signal(signal.SIGUSR1, lambda *a: print('handler', a[0]))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
        "print(signal.sigwait([signal.SIGUSR2]), signal.sigpending())\n"
        "signal.raise_signal(signal.SIGINT)",
    ],
]


@pytest.mark.parametrize("command", SCRIPTS, ids=lambda command: str(command[0]))
def test_scripts_handle_signals_as_natively(command: list[str], guest: Run, native: Run) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    expected, got = native(*command), guest(*command)
    assert (got.returncode, got.stdout) == (expected.returncode, expected.stdout)


def _start(backend: str, *command: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.process.guest", backend, *command],
        env=environment,
        stdout=subprocess.PIPE,
    )


@pytest.mark.parametrize("place", ["computing", "in a call"])
def test_a_signal_from_outside_ends_it(backend: str, place: str, tmp_path: Path) -> None:
    wait = "while :; do :; done" if place == "computing" else "exec sleep 60"
    process = _start(backend, "sh", "-c", f"echo ready; {wait}")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    process.stdout.close()


def test_an_ignored_signal_stays_ignored(guest: Run) -> None:
    """As for nohup: what its parent ignored, the program ignores from its start."""

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    got = guest("sh", "-c", "kill -HUP $$; echo alive", preexec_fn=ignore)
    assert got.stdout == b"alive\n"


def test_sigpipe_ends_it_although_python_ignores_it(guest: Run) -> None:
    script = "(while echo more; do :; done; echo not reached >&2) | true; exit 3"
    got = guest("sh", "-c", script)
    assert (got.returncode, got.stderr) == (3, b"")
