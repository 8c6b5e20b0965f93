"""Running and timing whole processes."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Run:
    """One run of a process: seconds of wall time, peak resident bytes, output, status."""

    seconds: float
    peak: int
    output: str
    errors: str
    status: int


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> Run:
    """Run a command to its end."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors,
            env=os.environ | (environment or {}),
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        return Run(seconds, usage.ru_maxrss * 1024, out.read(), errors.read(), process.returncode)


def median(commands: Sequence[Sequence[str]], rounds: int) -> list[float]:
    """Median seconds of each command, run in turn so that drift hits all alike."""
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(rounds):
        for i, command in enumerate(commands):
            one = run(command)
            if one.status:
                raise SystemExit(f"{' '.join(command)} ended with {one.status}:\n{one.errors}")
            times[i].append(one.seconds)
    return [statistics.median(t) for t in times]


def trapline(*words: str) -> list[str]:
    """The command line of Trapline from this checkout."""
    return [sys.executable, "-m", "trapline.cli", *words]


def compiler() -> str:
    """The C compiler of this machine."""
    found = shutil.which("gcc") or shutil.which("cc")
    if not found:
        raise SystemExit("The benchmarks need a C compiler.\nhint: install gcc.")
    return found


def build(folder: Path, name: str) -> str:
    """Compile one of the programs, statically."""
    target = folder / name
    subprocess.run(
        [compiler(), "-O2", "-static", "-o", target, PROGRAMS / f"{name}.c", "-lm"], check=True
    )
    return str(target)
