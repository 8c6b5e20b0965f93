"""Where everything lies: the guest's physical memory, and the ports of the devices."""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

LOW_END: Final = 639 * KIB  # conventional memory, as a BIOS gives it: the last KiB is its own
EXTENDED_BIOS_DATA_END: Final = 640 * KIB
FIRMWARE: Final = 0xE0000
FIRMWARE_END: Final = MIB
# As QEMU has it: from this much memory on, what is beyond 3 GiB lies above 4 GiB.
WHOLE_LIMIT: Final = 3 * GIB + GIB // 2
BELOW_LIMIT: Final = 3 * GIB
ABOVE: Final = 4 * GIB

# In the firmware's place, which guests are told to leave alone.
FIRMWARE_USED_END: Final = 0xF3000
PAGE_TABLES: Final = 0xE0000  # six pages
GDT: Final = 0xE7000
VECTOR_STUBS: Final = 0xF0000  # a byte for each vector
TIMER_STUB: Final = 0xF0200
ACPI_TABLES: Final = 0xF2000  # a page; its first bytes are the RSDP

STACK: Final = 0x7C00
BOOT_SECTOR: Final = 0x7C00
BOOT_RECORD: Final = 0x9000  # the multiboot information

SERIAL: Final = 0x3F8
SERIAL_LINE: Final = 4
TIMER_LINE: Final = 0
CLOCK_LINE: Final = 8
PIC_MASTER: Final = 0x20
PIC_SLAVE: Final = 0xA0
ELCR: Final = 0x4D0
ONLY_CASCADE: Final = 0xFB  # the first controller's mask with no line of a device open
PIT: Final = 0x40
SPEAKER: Final = 0x61
KEYBOARD_DATA: Final = 0x60
KEYBOARD_COMMAND: Final = 0x64
CMOS: Final = 0x70
SYSTEM_CONTROL: Final = 0x92
ECHO: Final = 0xE0
FLUSH: Final = 0xE4
BYTE_ECHO: Final = 0xE8
BYTE_ECHO_OFFSETS: Final = (0, 2, 3)  # the debug port takes the place of the second
TEST_WINDOW: Final = 0xFF000000
TEST_LINES: Final = 0x2000
DEBUG_PORT: Final = 0xE9
DEBUG_EXITS: Final = ((0xF4, 4), (0x501, 2))  # where test suites put QEMU's, and its own choice
FIRMWARE_CONFIG: Final = 0x510
FIRMWARE_CONFIG_DMA: Final = 0x514
ACPI_CONTROLS: Final = (0x604, 0xB004)  # QEMU's, and Bochs's and old QEMU's
ACPI_EVENTS: Final = 0x600
ACPI_TIMER: Final = 0x608
PCI: Final = 0xCF8
RESET_CONTROL: Final = PCI + 1
IO_APIC: Final = 0xFEC00000
LOCAL_APICS: Final = 0xFEE00000
TIMER_PIN: Final = 2  # of the I/O APIC; the other lines have their own number
