"""Runs a program twice, as it is and under `trapline trace`, and holds the two against each other.

Knows what a user can see of a program: its output, its status, the files it leaves behind.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TRACE = [sys.executable, "-m", "trapline.cli", "trace"]
TIMEOUT = 240  # of one program: the very first run compiles, and the machine may be busy
deep = pytest.mark.skipif(
    not os.environ.get("TRAPLINE_DEEP"), reason="slow; TRAPLINE_DEEP=1 runs it"
)
_PROGRESS = re.compile(
    rb"trapline: compiling for first use: \d+ instruction forms in \d+ s"
    rb" \(kept for the next run\)\n"
)
_KEPT = ("PATH", "HOME", "TMPDIR", "XDG_CACHE_HOME", "TRAPLINE_CACHE", "TRAPLINE_DEBUG")
# Natively the C library gets the processor that the guest sees: its mathematical functions round
# otherwise where they find FMA.
_LIKE_THE_GUEST = "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F,-AVX2_Usable,-FMA_Usable,-FMA4_Usable"

Prepare = Callable[[Path], None]


@dataclass(frozen=True)
class Ran:
    """How a program ended: its status as a shell reports it, its output, the files it left."""

    status: int
    stdout: bytes
    stderr: bytes
    files: dict[str, tuple[str, bytes]]


def need(*programs: str) -> None:
    """Skip the test where one of these programs is not installed."""
    for name in programs:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")


class Laboratory:
    """A folder in which the same program runs natively and traced, from the same files."""

    def __init__(self, root: Path, prepare: Prepare | None = None) -> None:
        self._folder, self._report = root / "here", root / "report.json"
        self._prepare = prepare
        self._extra: dict[str, str] = {}

    def native(self, *command: str, stdin: bytes = b"") -> Ran:
        return self._run(command, stdin)

    def traced(
        self, *command: str, options: Sequence[str] = (), stdin: bytes = b""
    ) -> tuple[Ran, dict[str, Any]]:
        """What the user sees, without the word about compiling, and the report."""
        to_report = ["--format", "json", "--report-file", str(self._report)]
        ran = self._run([*TRACE, *to_report, *options, "--", *command], stdin)
        stderr = _PROGRESS.sub(b"", ran.stderr)
        text = self._report.read_text()
        assert text, stderr.decode(errors="replace")
        return Ran(ran.status, ran.stdout, stderr, ran.files), json.loads(text)

    def check(
        self, *command: str, options: Sequence[str] = (), stdin: bytes = b""
    ) -> tuple[Ran, dict[str, Any]]:
        """Run both ways: the same in all that can be seen, and not one bus lock."""
        expected = self.native(*command, stdin=stdin)
        got, report = self.traced(*command, options=options, stdin=stdin)
        assert got.stderr == expected.stderr
        assert got.stdout == expected.stdout
        assert got.status == expected.status == report["exit_status"]
        assert got.files == expected.files
        assert (report["bus_locks"], report["sites"]) == (0, [])
        assert report["program"][-len(command) + 1 :] == list(command[1:]) or len(command) == 1
        return got, report

    def _run(self, command: Sequence[str], stdin: bytes) -> Ran:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        if self._prepare:
            self._prepare(self._folder)
        process = subprocess.Popen(
            command,
            cwd=self._folder,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(stdin, TIMEOUT)
        except BaseException:
            _end_session(process.pid)
            process.communicate()
            raise
        code = process.returncode
        return Ran(code if code >= 0 else 128 - code, stdout, stderr, _files(self._folder))


def _environment() -> dict[str, str]:
    """The tests' own, but for what would make output depend on the machine."""
    return {
        **{name: os.environ[name] for name in _KEPT if name in os.environ},
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GLIBC_TUNABLES": _LIKE_THE_GUEST,
    }


def _end_session(session: int) -> None:
    """Kill all that a run has started and that may hang."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue


def _files(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Everything below a folder: kind and mode, and content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            content = os.fsencode(os.readlink(path))
        else:
            content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (oct(path.lstat().st_mode), content)
    return found
