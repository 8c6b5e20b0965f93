"""The ACPI tables of the board: where each lies, and what stands in it.

ACPI Specification, "ACPI Software Programming Model".  The DSDT says how to switch off (S5) and
lists what is on fixed ports.
"""

from __future__ import annotations

import struct
from typing import Final

from trapline.machine.acpi import aml
from trapline.machine.layout import (
    ACPI_CONTROLS,
    ACPI_EVENTS,
    ACPI_TABLES,
    ACPI_TIMER,
    CLOCK_LINE,
    CMOS,
    IO_APIC,
    LOCAL_APICS,
    RESET_CONTROL,
    SERIAL,
    SERIAL_LINE,
    TIMER_PIN,
)
from trapline.machine.memory import Memory

_HEADER: Final = struct.Struct("<4sIBB6s8sI4sI")
_SCI: Final = 9
_RESET_VALUE: Final = 6
_IO_SPACE: Final = 1
_CENTURY: Final = 0x32  # where the CMOS clock has it
_LEVEL_HIGH: Final = 0xD

# FADT flags (ACPI, "Fixed ACPI Description Table Fixed Feature Flags"): WBINVD, PROC_C1,
# PWR_BUTTON and SLP_BUTTON (there are none at fixed ports), RESET_REG_SUP.
_FADT_FLAGS: Final = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 10
_LEGACY_DEVICES: Final = 1  # IA-PC boot architecture flags; no 8042 worth probing


def write_tables(memory: Memory, cpus: int) -> int:
    """Put the tables into memory; the address of the RSDP, which starts them."""
    at = ACPI_TABLES + 0x40

    def put(data: bytes) -> int:
        nonlocal at
        start, at = at, at + len(data) + 63 & ~63
        memory.write(start, data)
        return start

    facs = put(struct.pack("<4sIIIII40x", b"FACS", 64, 0, 0, 0, 0))
    dsdt = put(_table(b"DSDT", 2, _dsdt()))
    listed = put(_table(b"FACP", 3, _fadt(facs, dsdt))), put(_table(b"APIC", 3, _madt(cpus)))
    rsdt = put(_table(b"RSDT", 1, struct.pack(f"<{len(listed)}I", *listed)))
    xsdt = put(_table(b"XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed)))
    memory.write(ACPI_TABLES, _rsdp(rsdt, xsdt))
    return ACPI_TABLES


def _sum_up(data: bytes, at: int) -> bytes:
    """With the byte at `at` such that all add up to zero."""
    return data[:at] + bytes((-sum(data) & 0xFF,)) + data[at + 1 :]


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = _HEADER.pack(
        signature, _HEADER.size + len(body), revision, 0, b"TRAPLN", b"TRAPLINE", 1, b"TRAP", 1
    )
    return _sum_up(header + body, 9)


def _rsdp(rsdt: int, xsdt: int) -> bytes:
    first = _sum_up(struct.pack("<8sB6sBI", b"RSD PTR ", 0, b"TRAPLN", 2, rsdt), 8)
    return _sum_up(first + struct.pack("<IQB3x", 36, xsdt, 0), 32)


def _register(port: int, width: int) -> bytes:
    """A generic address structure of an I/O port."""
    if not port:
        return bytes(12)
    return struct.pack("<BBBBQ", _IO_SPACE, width, 0, min(width // 8, 3), port)


def _fadt(facs: int, dsdt: int) -> bytes:
    """Revision 3; the machine is in ACPI mode from the start, so there is no SMI command."""
    fixed = struct.pack(
        "<IIxBHIBBBBIIIIIIIIBBBBBBBBHHHHBBBBB",
        facs, dsdt, 0, _SCI, 0, 0, 0, 0, 0,
        ACPI_EVENTS, 0, ACPI_CONTROLS[0], 0, 0, ACPI_TIMER, 0, 0,
        4, 2, 0, 4, 0, 0, 0, 0,
        0xFFF, 0xFFF, 0, 0,  # neither C2 nor C3
        0, 0, 0, 0, _CENTURY,
    )  # fmt: skip
    rest = struct.pack("<HxI", _LEGACY_DEVICES, _FADT_FLAGS) + _register(RESET_CONTROL, 8)
    rest += struct.pack("<B3xQQ", _RESET_VALUE, 0, dsdt)
    blocks = (
        (ACPI_EVENTS, 32), (0, 0), (ACPI_CONTROLS[0], 16), (0, 0), (0, 0), (ACPI_TIMER, 32),
        (0, 0), (0, 0),
    )  # fmt: skip
    return fixed + rest + b"".join(_register(*block) for block in blocks)


def _madt(cpus: int) -> bytes:
    """Who there is: a local APIC a processor, the I/O APIC, and where the lines differ."""
    entries = b"".join(struct.pack("<BBBBI", 0, 8, cpu, cpu, 1) for cpu in range(cpus))
    entries += struct.pack("<BBBBII", 1, 12, 0, 0, IO_APIC, 0)
    entries += struct.pack("<BBBBIH", 2, 10, 0, 0, TIMER_PIN, 0)  # ISA interrupt 0
    entries += struct.pack("<BBBBIH", 2, 10, 0, _SCI, _SCI, _LEVEL_HIGH)
    entries += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)  # NMI: LINT1 of all
    return struct.pack("<II", LOCAL_APICS, 1) + entries  # there are 8259s too


def _dsdt() -> bytes:
    soft_off = aml.package(*[aml.number(0)] * 4)
    serial = aml.device(
        "COM1",
        aml.name("_HID", aml.hardware_id("PNP0501")),
        aml.name("_UID", aml.number(1)),
        aml.name("_CRS", aml.resources(aml.ports(SERIAL, 8), aml.interrupt(SERIAL_LINE))),
    )
    clock = aml.device(
        "RTC_",
        aml.name("_HID", aml.hardware_id("PNP0B00")),
        aml.name("_CRS", aml.resources(aml.ports(CMOS, 2), aml.interrupt(CLOCK_LINE))),
    )
    return aml.name("_S5_", soft_off) + aml.scope("_SB_", serial, clock)
