"""The mmap family: a program that tries it all says the same as natively."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.process.conftest import Run

SCRIPT = Path(__file__).with_name("memory_script.py")


def test_the_mmap_family_behaves_as_natively(guest: Run, native: Run) -> None:
    command = [sys.executable, "-S", str(SCRIPT)]
    expected, got = native(*command), guest(*command)
    assert expected.returncode == 0, expected.stderr
    assert got.stdout.decode().splitlines() == expected.stdout.decode().splitlines()
    assert got.returncode == 0, got.stderr


def test_a_file_cut_short_under_a_mapping_is_sigbus(guest: Run, native: Run) -> None:
    script = """
import mmap, os, tempfile
file = tempfile.TemporaryFile()
file.write(b"x" * 8192)
file.flush()
view = mmap.mmap(file.fileno(), 8192)
print(view[5000], flush=True)
os.ftruncate(file.fileno(), 0)
print(view[5000], flush=True)
"""
    command = [sys.executable, "-S", "-c", script]
    expected, got = native(*command), guest(*command)
    assert (got.returncode, got.stdout) == (expected.returncode, expected.stdout) == (135, b"120\n")
