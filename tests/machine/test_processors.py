"""An image with several processors at CPL 3, each with the bus lock debug exception on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.run import trapline
from tests.machine import guests
from tests.machine.qemu import run_in_qemu
from trapline.kvm import Vcpu, open_kvm
from trapline.machine import Board, Runner
from trapline.processor import BusLock, Cause, Outcome

ROUNDS = 100


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return guests.build_long(tmp_path_factory.mktemp("images"), "processors.c")


def expected(processors: int, *, detects: bool) -> list[str]:
    """What the guest says: each processor's #DBs and the DR6 that the last one left."""
    own = ["traps 00000064", "dr6 ffff07f0"] if detects else ["traps 00000000", "dr6 00000000"]
    return [
        f"processors {processors:08x}",
        f"detection {detects:08x}",
        *own * processors,
        "wrong 00000000",
        f"counter {ROUNDS * processors:08x}",
    ]


@pytest.mark.parametrize("words", ["", "x2apic"], ids=["xapic", "x2apic"])
@pytest.mark.parametrize(("cpu", "processors"), [("sapphire-rapids", 2), ("zen5", 2), ("max", 4)])
def test_every_processor_gets_its_own_debug_exceptions(
    images: tuple[Path, Path], cpu: str, processors: int, words: str
) -> None:
    """SDM 3B, "Bus-Lock Debug Exception"; started by INIT and SIPI, split locks on one variable
    lose no update, and each is followed by its processor's #DB with DR6 bit 11 cleared."""
    options = ("--cpu", cpu, "--smp", processors, "--append", words)
    done = trapline("run", *options, images[0])
    assert done.stdout.splitlines() == expected(processors, detects=True)
    assert done.returncode == 1
    assert f"trapline: {ROUNDS * processors} bus locks at 1 instruction" in done.stderr


@pytest.mark.parametrize("cpu", ["legacy", "zen4"])
def test_processors_without_the_feature_only_lock_the_bus(
    images: tuple[Path, Path], cpu: str
) -> None:
    done = trapline("run", "--cpu", cpu, "--smp", "2", images[1])
    assert done.stdout.splitlines() == expected(2, detects=False)
    assert done.returncode == 1
    assert "CPL 3, silent" in done.stderr


def test_qemu_says_the_same_of_processors_without_the_feature(images: tuple[Path, Path]) -> None:
    judged = run_in_qemu(images[0], "-smp", "2")
    assert judged.output.decode().splitlines() == expected(2, detects=False)
    assert judged.status == 1


class Kicker:
    """Kicks the vCPU between an instruction that locked the bus and its #DB."""

    def __init__(self) -> None:
        self.vcpu: Vcpu | None = None
        self.outcomes: list[Outcome] = []

    def bus_lock(self, lock: BusLock, outcome: Outcome) -> None:
        assert self.vcpu is not None
        self.vcpu.kick()
        self.outcomes.append(outcome)

    def bus_lock_total(
        self, rip: int, next_rip: int, cause: Cause, size: int, cpl: int, linear: int, count: int
    ) -> None:
        """None: each one here signals."""

    def undefined(self, rip: int, code: bytes, text: str) -> None: ...


@pytest.mark.parametrize("engine", ["jit", "interp"])
@pytest.mark.parametrize("cpu", ["sapphire-rapids", "zen5"])
def test_a_kick_after_the_instruction_does_not_lose_its_debug_exception(
    images: tuple[Path, Path], cpu: str, engine: str
) -> None:
    """SDM 3A, "Priority Among Concurrent Events": debug traps come before external interrupts,
    whose exit a kick makes."""
    output, kicker = bytearray(), Kicker()
    board = Board(open_kvm(cpu=cpu, engine=engine, observer=kicker), 16 << 20, output.extend)
    kicker.vcpu = board.vcpu
    board.load(images[0].read_bytes())
    assert Runner(board).run(60).status == 1
    board.close()
    assert output.decode().splitlines() == expected(1, detects=True)
    assert kicker.outcomes == [Outcome.DB] * ROUNDS
