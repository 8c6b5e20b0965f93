"""`trapline demo`: traces a small program that ships with Trapline and needs no compiler."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

from trapline.cli.report import add_report_options, write_report
from trapline.cli.session import Session
from trapline.cli.trace import trace

EPILOG = """\
The program takes split locks on its stack, in a packed global, in a mapping, in a thread and in
a child; its source is shown beside what is found.  All of this happens on Trapline's own
processor: the machine you sit at notices nothing.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.epilog = EPILOG
    add_report_options(parser)


def run(options: argparse.Namespace) -> int:
    """Trace the demo program; its report is what this verb prints."""
    with _demo_program() as path:
        shortest = min(str(path), os.path.relpath(path), key=len)
        status, summary = trace(Session([shortest], warns=False), None)
        if summary is not None:
            write_report(summary, sys.stdout, options)
    return status


@contextlib.contextmanager
def _demo_program() -> Iterator[Path]:
    """The program, executable, with its source beside it."""
    with as_file(files("trapline") / "demo") as folder:
        if os.access(folder / "demo", os.X_OK):
            yield folder / "demo"
            return
        with tempfile.TemporaryDirectory(prefix="trapline-demo-") as copied:
            for name in ("demo", "demo.c", "linux.h"):
                shutil.copy(folder / name, copied)
            path = Path(copied) / "demo"
            path.chmod(0o755)
            yield path
