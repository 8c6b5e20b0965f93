"""The mmap family: a program that tries it all says the same as natively."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.process.c_programs import compiled
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


def test_code_that_a_call_replaces_is_run_as_it_is_then(guest: Run, native: Run) -> None:
    """A processor has nothing to hold on to (SDM 3A, "Self-Modifying Code")."""
    program = compiled("rewritten")
    expected, got = native(program), guest(program)
    assert got.stdout.decode().splitlines() == expected.stdout.decode().splitlines()
    assert (got.returncode, got.stderr) == (0, b"")
    assert b"old" not in expected.stdout
