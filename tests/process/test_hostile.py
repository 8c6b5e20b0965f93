"""Programs of random bytes: they end, one way or another, and the VMM says nothing about it."""

from __future__ import annotations

import random
import resource
from pathlib import Path

import pytest

from tests.process.conftest import Run
from tests.process.test_elf import EXIT_0, small_elf

# SYSCALL, SYSENTER and INT 0x80 could do real things to the machine that runs the tests.
REAL_CALLS = (b"\x0f\x05", b"\x0f\x34", b"\xcd\x80")
SIGXCPU = 24


def _bytes(seed: int) -> bytes:
    source = random.Random(seed)
    while True:
        code = source.randbytes(400)
        if not any(call in code for call in REAL_CALLS):
            return code


def _limit_time() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@pytest.mark.parametrize("seed", range(12))
def test_random_bytes_end_the_program_and_nothing_else(
    seed: int, guest: Run, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_bytes(small_elf(_bytes(seed) + EXIT_0))
    program.chmod(0o755)
    got = guest(str(program), preexec_fn=_limit_time)
    assert got.stderr == b""
    assert got.returncode == 0 or 128 < got.returncode < 128 + 32 or got.returncode == -SIGXCPU
