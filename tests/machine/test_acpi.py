"""The ACPI tables: that they can be found, add up, and say what the board has."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.machine.guests import END, run, wide_port
from trapline.machine import How
from trapline.machine.acpi import aml


class Tables(NamedTuple):
    """What a guest finds."""

    start: bytes
    by_signature: dict[bytes, bytes]
    rsdt: list[int]
    xsdt: list[int]


def find(cpus: int = 2) -> Tables:
    """As an operating system does: the signature on a 16-byte boundary, then by the pointers."""
    memory = run(END, cpus=cpus).board.memory
    area = memory.read(0xE0000, 0x20000)
    at = next(i for i in range(0, len(area), 16) if area[i : i + 8] == b"RSD PTR ")
    start = area[at : at + 36]
    rsdt, xsdt = struct.unpack("<I", start[16:20])[0], struct.unpack("<Q", start[24:32])[0]

    def read(address: int) -> bytes:
        return memory.read(address, struct.unpack("<I", memory.read(address + 4, 4))[0])

    narrow = list(struct.unpack(f"<{len(read(rsdt)[36:]) // 4}I", read(rsdt)[36:]))
    wide = list(struct.unpack(f"<{len(read(xsdt)[36:]) // 8}Q", read(xsdt)[36:]))
    tables = [read(address) for address in (rsdt, xsdt, *wide)]
    fadt = next(table for table in tables if table.startswith(b"FACP"))
    tables += [read(address) for address in struct.unpack("<II", fadt[36:44])]
    return Tables(start, {table[:4]: table for table in tables}, narrow, wide)


def test_every_sum_is_zero() -> None:
    """ACPI, "System Description Table Header"; the FACS has none."""
    tables = find()
    assert sum(tables.start[:20]) & 0xFF == sum(tables.start) & 0xFF == 0
    sums = {name: sum(data) & 0xFF for name, data in tables.by_signature.items()}
    assert sums.pop(b"FACS") is not None
    assert sums == dict.fromkeys((b"RSDT", b"XSDT", b"FACP", b"APIC", b"DSDT"), 0)
    assert tables.rsdt == tables.xsdt


@pytest.mark.parametrize("cpus", [1, 4, 255])
def test_the_processors_and_controllers_are_listed(cpus: int) -> None:
    """ACPI, "Multiple APIC Description Table"."""
    madt = find(cpus).by_signature[b"APIC"]
    assert struct.unpack("<II", madt[36:44]) == (0xFEE00000, 1)
    entries, at = [], 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    assert [entry[3] for entry in entries if entry[0] == 0] == list(range(cpus))
    assert all(entry[4] == 1 for entry in entries if entry[0] == 0)  # enabled
    io_apic = next(entry for entry in entries if entry[0] == 1)
    assert struct.unpack("<II", io_apic[4:]) == (0xFEC00000, 0)
    overrides = [struct.unpack("<BIH", entry[3:]) for entry in entries if entry[0] == 2]
    assert overrides == [(0, 2, 0), (9, 9, 0xD)]


def test_the_guest_switches_off_and_resets_as_the_tables_say() -> None:
    """PM1a_CNT with the sleep type of _S5, and the reset register with its value."""
    tables = find().by_signature
    fadt, dsdt = tables[b"FACP"], tables[b"DSDT"]
    package = dsdt[dsdt.index(b"\x08_S5_") + 5 :]
    assert package[:1] == b"\x12" and package[3] == 0  # PackageOp, and the first element
    control = struct.unpack("<I", fadt[64:68])[0]
    off = b"\xb8" + struct.pack("<H", 1 << 13 | package[3] << 10) + wide_port(control) + b"\xef"
    assert run(off + END).ending.how is How.POWER_OFF
    space, width, _, _, port, value = struct.unpack("<BBBBQB", fadt[116:129])
    assert (space, width, struct.unpack("<I", fadt[112:116])[0] >> 10 & 1) == (1, 8, 1)
    again = b"\xb0" + bytes((value,)) + wide_port(port) + b"\xee"
    assert run(again + END).ending.how is How.RESET


def test_the_power_management_timer_counts() -> None:
    """Its port from the FADT: two looks, and the second is later."""
    port = struct.unpack("<I", find().by_signature[b"FACP"][76:80])[0]
    look = wide_port(port) + b"\x66\xed"  # in eax, dx
    wait = b"\x66\xb9\x10\x27\x00\x00\x66\x49\x75\xfc"  # mov ecx, 10000; dec ecx; jnz
    code = look + b"\x66\xa3\x00\x05" + wait + look + b"\x66\xa3\x04\x05"
    first, second = struct.unpack("<II", run(code + END).board.memory.read(0x500, 8))
    assert second != first and (first | second) < 1 << 24  # it goes around in 4.7 seconds


@pytest.mark.parametrize("size", [1, 62, 63, 100, 4000, 5000])
def test_package_lengths_count_themselves(size: int) -> None:
    """ACPI, "Package Length Encoding"."""
    code = aml.length(size)
    following = code[0] >> 6
    total = code[0] & 0x3F
    if following:
        total = code[0] & 0xF | int.from_bytes(code[1 : 1 + following], "little") << 4
    assert (len(code), total) == (1 + following, size + len(code))


def test_iasl_understands_them(tmp_path: Path) -> None:
    """The reference disassembler and compiler, from Debian's acpica-tools."""
    if shutil.which("iasl") is None:
        pytest.skip("there is no iasl here (Debian: acpica-tools)")
    for name, data in find().by_signature.items():
        path = tmp_path / f"{name.decode().lower()}.dat"
        path.write_bytes(data)
        done = subprocess.run(
            ["iasl", "-d", path], capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
        text = done.stdout + done.stderr
        assert done.returncode == 0, text
        assert not re.search(r"error|warning|invalid", text, re.IGNORECASE), text
    source = (tmp_path / "dsdt.dsl").read_text()
    assert "_S5" in source and "PNP0501" in source and "0x03F8" in source
    again = subprocess.run(
        ["iasl", "-ve", "dsdt.dsl"], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert again.returncode == 0, again.stdout + again.stderr
