"""Cases that may take their process with them, run in one that is watched.

The worker is a module that takes its setting as JSON, and prints the number of each case as it
begins and a JSON object as it ends.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HANG = 120.0  # seconds without a word


class Died(Exception):
    """The process that ran the cases did not live to tell, or was silent for too long."""


def run(worker: str, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """Run `setting["count"]` cases in another process; what it told of each."""
    child = subprocess.Popen(
        [sys.executable, "-m", worker, json.dumps(setting)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    try:
        return _listen(child, setting["count"])
    finally:
        child.kill()
        child.communicate()


def _listen(child: subprocess.Popen[bytes], count: int) -> list[dict[str, Any]]:
    assert child.stdout is not None and child.stderr is not None
    endings: list[dict[str, Any]] = []
    begun, rest = "none", b""
    while len(endings) < count:
        ready, _, _ = select.select([child.stdout], [], [], HANG)
        piece = os.read(child.stdout.fileno(), 1 << 16) if ready else b""
        if not piece:
            child.kill()
            status, said = child.wait(), child.stderr.read().decode(errors="replace")
            what = f"died, status {status}" if ready else "hung"
            raise Died(f"{what}, in case {begun}\n{said[-3000:]}")
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                endings.append(json.loads(line))
            else:
                begun = line.decode()
    return endings
