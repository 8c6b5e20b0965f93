"""Programs run as guests and natively, on every backend there is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from trapline.kvm import open_kvm
from trapline.kvm.host import is_pvm

ROOT = Path(__file__).parents[2]
TIMEOUT = 120

Run = Callable[..., subprocess.CompletedProcess[bytes]]


def _opens(backend: str) -> bool:
    try:
        open_kvm(backend).close()
    except (OSError, ValueError):
        return False
    return True


def skip_on_pvm(backend: str, why: str) -> None:
    """Skip what a KVM without hardware support under it (PVM) does otherwise than processors."""
    if backend == "host" and is_pvm():
        pytest.skip(f"this host's KVM is PVM: {why}")


@pytest.fixture(params=["host", "software"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not _opens(name):
        pytest.skip(f"the {name} backend does not open here")
    return name


def _run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    settings: dict[str, Any] = {"input": b"", **options}
    return subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False, **settings)


@pytest.fixture
def native() -> Run:
    """Runs a program as it is; the status is as a shell reports it."""

    def run(*command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        result = _run(command, **options)
        if result.returncode < 0:
            result.returncode = 128 - result.returncode
        return result

    return run


@pytest.fixture
def guest(backend: str) -> Run:
    """Runs a program as the guest."""

    def run(*command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, **options.pop("env", {})}
        environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'src'}"
        start = [sys.executable, "-m", "tests.process.guest", backend]
        return _run([*start, *command], env=environment, **options)

    return run
