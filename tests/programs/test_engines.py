"""The same programs on the reference engine, and on a real processor through /dev/kvm."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.programs.material import write_material
from tests.programs.traced import Laboratory, deep, need
from trapline.kvm import open_kvm

TINY = r"""
int main(int count, char **words) {
    double sum = 0;
    for (int i = 1; i < 50; i++) sum += 1.0 / i;
    return count + (int)(sum * 10);
}
"""
ON_A_REAL_PROCESSOR = [
    ["true"],
    ["echo", "hello"],
    ["ls", "-l", "tree"],
    ["sha256sum", "bytes"],
    ["sort", "-n", "numbers"],
    ["bash", "-c", "for i in 1 2 3; do echo $i; done | tac; exit 4"],
    ["perl", "-e", "print 1 / 3, qq{\\n}; exit 5"],
    ["/usr/bin/python3", "-S", "-c", "print(sum(x / 7 for x in range(1000)))"],
]


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    return Laboratory(tmp_path, write_material)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    need("gcc")
    (tmp_path / "tiny.c").write_text(TINY)
    command = ["gcc", "-O2", "-static", "tiny.c", "-o", "tiny"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    return str(tmp_path / "tiny")


@pytest.mark.parametrize("policy", ["off", "warn", "fatal", "ratelimit:10"])
def test_a_policy_does_not_touch_a_program_without_bus_locks(
    policy: str, laboratory: Laboratory
) -> None:
    laboratory.check("sha256sum", "words", options=["--policy", policy])


def test_the_reference_engine_runs_true(laboratory: Laboratory) -> None:
    laboratory.check("true", options=["--engine", "interp"])


def test_the_reference_engine_runs_a_static_program(laboratory: Laboratory, tiny: str) -> None:
    got, _ = laboratory.check(tiny, "argument", options=["--engine", "interp"])
    assert got.status == 46


@deep
@pytest.mark.parametrize("command", [["echo", "hello"], ["expr", "7", "*", "191"], ["ls", "tree"]])
def test_the_reference_engine_runs_more(command: list[str], laboratory: Laboratory) -> None:
    laboratory.check(*command, options=["--engine", "interp"])


@pytest.mark.parametrize("command", ON_A_REAL_PROCESSOR, ids=lambda command: str(command[0]))
def test_a_real_processor_runs_it(command: list[str], laboratory: Laboratory) -> None:
    need(command[0])
    try:
        open_kvm("host").close()
    except (OSError, ValueError) as error:
        pytest.skip(f"the host backend does not open here: {error}")
    laboratory.check(*command, options=["--backend", "host"])
