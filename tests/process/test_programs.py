"""Real programs as guests: the same output and status as natively."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.process.conftest import ROOT, Run

PROGRAMS = [
    ["true"],
    ["false"],
    ["ls", "-l", "/usr/bin"],
    ["sha256sum", "/bin/sh", "/bin/ls"],
    ["sort", "-r", "/etc/passwd"],
    ["wc", "/etc/passwd", "/etc/group"],
    ["date", "-u", "-d", "@86400", "+%F %T"],
    ["dd", "if=/dev/zero", "bs=64k", "count=20", "status=none"],
    ["od", "-c", "/etc/passwd"],
    ["env", "-i", "A=1", "/usr/bin/env"],
    ["sh", "-c", "echo $((6 * 7)); exit 3"],
    ["bash", "-c", "for i in {1..50}; do s+=$i; done; echo ${#s}; exit 9"],
    ["cat", "/nonexistent/file"],
    ["expr", "7", "*", "191"],
    ["awk", 'BEGIN { for (i = 0; i < 20000; i++) s += i * 0.5; printf "%.3f\\n", s }'],
    [
        "perl",
        "-e",
        'my %h; $h{$_ % 10} += $_ for 1 .. 5000; print map { "$_=$h{$_}\\n" } sort keys %h',
    ],
    [
        "/usr/bin/python3",
        "-c",
        "import json, decimal; print(json.dumps({'a': [1, 2.5]}), decimal.Decimal(2).sqrt())",
    ],
]


@pytest.mark.parametrize("command", PROGRAMS, ids=lambda command: str(command[0]))
def test_a_program_does_what_it_does_natively(command: list[str], guest: Run, native: Run) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    expected, got = native(*command), guest(*command)
    assert (got.returncode, got.stdout) == (expected.returncode, expected.stdout)
    assert got.stderr == expected.stderr


def test_standard_input_and_arguments_reach_it(guest: Run) -> None:
    got = guest("sh", "-c", 'read line; echo "$0 $# $line"', "zero", "one", input=b"hello\n")
    assert got.stdout == b"zero 1 hello\n"


def test_the_environment_reaches_it(guest: Run) -> None:
    got = guest("sh", "-c", "echo $GREETING", env={"GREETING": "good morning"})
    assert got.stdout == b"good morning\n"


def test_another_folder(guest: Run, tmp_path: object) -> None:
    assert guest("pwd", cwd=str(tmp_path)).stdout == f"{tmp_path}\n".encode()


def test_python_itself_runs_in_the_guest(guest: Run) -> None:
    """The interpreter that runs Trapline, as its guest: the VMM and the program side by side."""
    got = guest(sys.executable, "-S", "-c", "print(sum(range(1000)))")
    assert (got.returncode, got.stdout) == (0, b"499500\n")


def test_exec_chains_end_with_the_last_program(guest: Run) -> None:
    got = guest("sh", "-c", "exec sh -c 'exec echo three'")
    assert (got.returncode, got.stdout) == (0, b"three\n")


def test_a_failed_exec_leaves_the_program_running(guest: Run, native: Run) -> None:
    command = ["bash", "-c", "exec /nonexistent; echo not reached"]
    expected, got = native(*command), guest(*command)
    assert (got.returncode, got.stderr) == (expected.returncode, expected.stderr)
    assert got.returncode == 127


def test_an_undefined_instruction_or_a_wild_access_ends_it_with_the_right_signal(
    guest: Run, native: Run
) -> None:
    script = "import ctypes; ctypes.string_at({})"
    for place in ("0", "0xdeadbeef000", "-1"):
        command = [sys.executable, "-S", "-c", script.format(place)]
        assert guest(*command).returncode == native(*command).returncode == 128 + 11


def test_the_vmm_and_the_program_at_the_same_fixed_addresses(
    backend: str, native: Run, tmp_path: Path
) -> None:
    """Debian's python3 is linked to 0x400000: it runs Trapline, and is the program."""
    python = Path("/usr/bin/python3")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not python.exists() or native(str(python), "-c", _VERSION).stdout.decode() != version:
        pytest.skip("no other Python of this version to run Trapline with")
    paths = [str(ROOT), str(ROOT / "src"), sysconfig.get_path("purelib")]
    got = native(
        *(str(python), "-m", "tests.process.guest", backend, str(python), "-S", "-c"),
        "print(open('/proc/self/maps').readline().split('-')[0], 6 * 7)",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=str(tmp_path),
    )
    assert got.stdout.split()[1:] == [b"42"], got.stderr


_VERSION = "import sys; print(*sys.version_info[:2], sep='.', end='')"
