"""Programs that give up their rights or change their root are reported with all names still."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.run import trapline

PROGRAM = r"""
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
static char line[128] __attribute__((aligned(64)));
__attribute__((noinline)) static void *hit(void *unused) {
    __atomic_fetch_add((int *)(line + 62), 1, __ATOMIC_SEQ_CST);  /* HIT */
    return unused;
}
int main(int count, char **arguments) {
    if (!strcmp(arguments[1], "setuid") && setuid(65534)) return 1;
    if (!strcmp(arguments[1], "chroot") && chroot(arguments[2])) return 2;
    if (!strcmp(arguments[1], "both") && (chroot(arguments[2]) || setuid(65534))) return 3;
    hit(0);
    pthread_t thread;
    if (pthread_create(&thread, 0, hit, 0) || pthread_join(thread, 0)) return 4;
    pid_t child = fork();
    if (!child) { hit(0); _exit(0); }
    int status;
    return waitpid(child, &status, 0) == child ? status : 5;
}
"""
LINE = 1 + next(n for n, text in enumerate(PROGRAM.splitlines()) if "HIT" in text)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid() != 0:
        pytest.skip("only root may give up root's rights")
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("rights")
    folder.chmod(0o700)  # nobody else reads the program's file
    (folder / "rights.c").write_text(PROGRAM)
    command = ["gcc", "-g", "-O1", folder / "rights.c", "-o", folder / "rights", "-lpthread"]
    subprocess.run(command, check=True)
    return folder / "rights"


@pytest.mark.parametrize("what", ["setuid", "chroot", "both"])
def test_names_outlive_rights_and_root(program: Path, tmp_path: Path, what: str) -> None:
    if what != "setuid" and not _may_chroot():
        pytest.skip("chroot is not permitted here")
    trace, report, root = tmp_path / "trace", tmp_path / "report", tmp_path / "root"
    root.mkdir()
    options = ["--output", trace, "--format", "json", "--report-file", report]
    done = trapline("trace", *options, "--", program, what, root)
    assert done.returncode == 0, done.stderr
    document = json.loads(report.read_text())
    assert document["bus_locks"] == 3
    for site in document["sites"]:
        assert (site["function"], site["line"]) == ("hit", LINE)
        assert "main" in [frame["function"] for frame in site["stack"]]
    assert "problems" not in trace.read_text()


def _may_chroot() -> bool:
    return subprocess.run(["chroot", "/", "/bin/true"], check=False).returncode == 0
