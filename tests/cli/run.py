"""Runs the command as a user would, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

TRAPLINE = [sys.executable, "-m", "trapline.cli"]
COMPILING = "trapline: compiling for first use: "
DEMO = Path(__file__).parents[2] / "src" / "trapline" / "demo" / "demo"


def trapline(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command's status, stdout, and stderr without the news of a first compilation."""
    options = {"capture_output": True, "text": True, "timeout": 120, **options}
    done = subprocess.run([*TRAPLINE, *map(str, arguments)], **options)
    lines = (done.stderr or "").splitlines(keepends=True)
    done.stderr = "".join(line for line in lines if not line.startswith(COMPILING))
    return done
