"""Threads of a guest program: the same as natively."""

from __future__ import annotations

import shutil

import pytest

from tests.process.c_programs import compiled
from tests.process.conftest import Run


@pytest.mark.parametrize("name", ["threads", "endings", "shootdown", "vectors"])
def test_threads_meet_and_end_as_natively(name: str, guest: Run, native: Run) -> None:
    program = compiled(name)
    expected, got = native(program), guest(program)
    assert got.stdout.decode() == expected.stdout.decode()
    assert (got.returncode, got.stderr) == (expected.returncode, expected.stderr)


PROGRAMS = [
    [
        "/usr/bin/python3",
        "-S",
        "-c",
        "import threading, queue\n"
        "jobs, results = queue.Queue(), []\n"
        "def work():\n"
        "    while (job := jobs.get()) is not None: results.append(sum(range(job)))\n"
        "threads = [threading.Thread(target=work) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "for i in range(40): jobs.put(i)\n"
        "for _ in threads: jobs.put(None)\n"
        "for thread in threads: thread.join()\n"
        "print(sum(results))",
    ],
    ["sh", "-c", "seq 4000 | sort --parallel=2 -S 16K -R | sort --parallel=2 -n | tail -1"],
    ["sh", "-c", "seq 12000 | xz -T2 --block-size=16KiB -0 | xz -T2 -dc | sha256sum"],
]


@pytest.mark.parametrize("command", PROGRAMS, ids=["python3", "sort", "xz"])
def test_a_program_with_threads_does_what_it_does_natively(
    command: list[str], guest: Run, native: Run
) -> None:
    if shutil.which(command[0]) is None or shutil.which("xz") is None:
        pytest.skip(f"{command[0]} is not installed")
    expected, got = native(*command), guest(*command)
    assert (got.returncode, got.stdout) == (expected.returncode, expected.stdout)
