"""Resource limits are for the program: it meets them as natively, and Trapline loses nothing."""

from __future__ import annotations

import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.programs.traced import Laboratory, need

LOCKS = r"""
static char line[128] __attribute__((aligned(64)));
int main(int count, char **words) {
    for (int i = 0; i < 9; i++) __atomic_fetch_add((int *)(line + 62), 1, __ATOMIC_SEQ_CST);
    return count;
}
"""
FILES = r"""
    ulimit -f 2
    echo short >a; echo $?
    { head -c 5000 /dev/zero >b; } 2>/dev/null; echo $?; stat -c %s b
    (trap '' XFSZ; head -c 5000 /dev/zero >c; echo $?; stat -c %s c)
    head -c 3000 /dev/zero | wc -c; ulimit -f; truncate -s 2048 d; truncate -s 2049 d
"""
CALLS = """
    import os, resource
    fd = os.open("made", os.O_CREAT | os.O_WRONLY)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
    for call in (
        lambda: os.ftruncate(fd, 3000), lambda: os.posix_fallocate(fd, 0, 3000),
        lambda: os.pwrite(fd, b"x", 2048), lambda: os.write(fd, bytes(3000)),
        lambda: os.truncate("made", 4000), lambda: os.writev(fd, [bytes(3000)]),
    ):
        try: print(call())
        except OSError as error: print(error)
"""


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    return Laboratory(tmp_path)


def test_a_file_size_limit_is_met_as_natively(laboratory: Laboratory) -> None:
    need("bash")
    got, _ = laboratory.check("bash", "-c", textwrap.dedent(FILES))
    assert len(got.files["b"][1]) == 2048


def test_every_call_that_lengthens_a_file_knows_the_limit(laboratory: Laboratory) -> None:
    need("/usr/bin/python3")
    laboratory.check("/usr/bin/python3", "-S", "-c", textwrap.dedent(CALLS))


@pytest.mark.parametrize("limit", ["-f 0", "-d 30000", "-v 50000", "-n 5", "-s 200"])
def test_no_bus_lock_is_lost_under_a_limit(
    limit: str, laboratory: Laboratory, tmp_path: Path
) -> None:
    need("bash", "gcc")
    (tmp_path / "locks.c").write_text(LOCKS)
    command = ["gcc", "-O1", "-static", "locks.c", "-o", "locks"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    script = f"ulimit {limit}; {tmp_path}/locks; {tmp_path}/locks one two; exit"
    got, report = laboratory.traced("bash", "-c", script, options=["--policy", "off"])
    assert (got.status, got.stdout, got.stderr) == (3, b"", b"")
    assert report["bus_locks"] == 18
