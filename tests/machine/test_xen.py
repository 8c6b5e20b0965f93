"""Debian's Xen as a guest: a hypervisor that looks closely at the machine it is on."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.cli.run import trapline
from tests.machine import guests
from trapline.machine import How

# Without a BIOS there is no video mode to ask for; what is no Linux cannot become domain 0.
OPTIONS = "com1=115200,8n1 console=com1 loglvl=all noreboot no-real-mode"
END = "Could not construct domain 0"


@pytest.fixture(scope="module")
def xen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packed = sorted(Path("/boot").glob("xen-*-amd64.gz"))
    if not packed:
        pytest.skip("there is no Xen in /boot (Debian's xen-hypervisor-4.17-amd64)")
    image = tmp_path_factory.mktemp("xen") / "xen.elf"
    image.write_bytes(gzip.decompress(packed[0].read_bytes()))
    (image.parent / "kernel").write_bytes(guests.elf64(guests.END))
    return image


@pytest.mark.parametrize("cpu", ["max", "zen5"])
def test_xen_starts_and_finds_the_machine(xen: Path, cpu: str) -> None:
    """A multiboot image that moves itself, reads the ACPI tables, programs the APICs, finds out
    how fast the clocks are, and starts the second processor; QEMU takes it as far."""
    options = ("--cpu", cpu, "--smp", "2", "--memory", "512M", "--timeout", "300")
    kernel = ("--initrd", xen.parent / "kernel", "--append", OPTIONS)
    done = trapline("run", *options, *kernel, xen, timeout=400)
    for sentence in (
        "Bootloader: trapline",
        f"Command line: {OPTIONS}",
        "[0000000000100000, 000000001fffffff] (usable)",
        "Using ACPI (MADT) for SMP configuration information",
        "ENABLING IO-APIC IRQs",
        "Brought up 2 CPUs",
        "*** Building a PV Dom0 ***",
        END,
    ):
        assert sentence in done.stdout
    assert "FAULT" not in done.stdout
    assert done.returncode == How.HALTED.value, done.stderr
