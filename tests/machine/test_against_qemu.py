"""The same image under QEMU and here: the same words on the serial port, the same status."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.run import trapline
from tests.machine import guests
from tests.machine.qemu import run_in_qemu

_NAMES = {"-m": "--memory", "-smp": "--smp", "-append": "--append", "-initrd": "--initrd"}
_OWN_AFFAIR = (
    rb"loader '.*'\n",  # who it was
    # QEMU's firmware keeps the last 128 KiB of memory, and space where it has its ROM.
    rb"upper .*\n",
    rb"region .* kind 00000002\n",
    rb"region 0000000000100000 .*\n",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the images and their modules lie; both are run from there."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "first").write_bytes(b"a module\0\xff" * 100)
    (folder / "second,").write_bytes(bytes(range(256)) * 33)
    (folder / "empty").write_bytes(b"")
    return folder


def judge(image: Path, *options: str) -> bytes:
    """What both print; that they agree is asserted, but for what is the firmware's own affair."""
    expected = run_in_qemu(image, *options)
    words = [_NAMES.get(word, word) for word in options]
    done = trapline("run", *words, image, cwd=image.parent)
    output = done.stdout.encode()
    assert (_shared(output), done.returncode) == (_shared(expected.output), expected.status)
    return output


def _shared(output: bytes) -> bytes:
    for line in _OWN_AFFAIR:
        output = re.sub(line, b"", output)
    return output


@pytest.mark.parametrize(
    "options",
    [
        ("-append", "one  two", "-initrd", "first some  words,empty"),
        ("-m", "5G", "-initrd", "second,, with a comma"),
        ("-m", "3300"),
    ],
    ids=["modules", "much memory", "3300 MiB"],
)
def test_boot_information(folder: Path, options: tuple[str, ...]) -> None:
    """Registers, flags, command line, modules with their strings, and the memory map."""
    output = judge(guests.build32(folder, "boot_information.c"), *options)
    assert (b"module.string '" in output) == ("-initrd" in options)


def test_firmware_configuration_and_test_device(folder: Path) -> None:
    output = judge(guests.build32(folder, "firmware_configuration.c"), "-m", "64")
    assert b"signature 51 45 4d 55" in output


def test_interrupt_controllers_and_processors(folder: Path) -> None:
    """Local APIC, I/O APIC, the ACPI tables, and what the other processors start with."""
    image = guests.build32(folder, "interrupt_controllers.c")
    output = judge(image, "-m", "64", "-smp", "3")
    assert output.count(b"started.id") == 2
