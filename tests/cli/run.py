"""Runs the command as a user would, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

TRAPLINE = [sys.executable, "-m", "trapline.cli"]
DEMO = Path(__file__).parents[2] / "src" / "trapline" / "demo" / "demo"


def trapline(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command's status, stdout and stderr."""
    options = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([*TRAPLINE, *map(str, arguments)], **options)
