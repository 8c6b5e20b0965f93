"""The I/O APIC: its registers, and lines that reach a processor through it."""

from __future__ import annotations

import struct

import pytest

from tests.machine.guests import END, FOREVER, HLT, STATUS, multiboot, run
from trapline.machine.devices import IoApic

SELECT, WINDOW, EOI = 0x00, 0x10, 0x40
MASKED, LEVEL, REMOTE_IRR, LOGICAL = 1 << 16, 1 << 15, 1 << 14, 1 << 11


class Sent:
    """An I/O APIC and the messages it has sent."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int]] = []
        self.io_apic = IoApic(lambda *message: self.messages.append(message), lambda: 0x33)

    def write(self, register: int, word: int) -> None:
        self.io_apic.write(SELECT, 4, register)
        self.io_apic.write(WINDOW, 4, word)

    def read(self, register: int) -> int:
        self.io_apic.write(SELECT, 4, register)
        return self.io_apic.read(WINDOW, 4)

    def route(self, line: int, low: int, destination: int = 0) -> None:
        self.write(0x11 + 2 * line, destination << 24)
        self.write(0x10 + 2 * line, low)


def test_registers() -> None:
    """Intel, 82093AA: all entries masked; delivery status and remote IRR cannot be written."""
    sent = Sent()
    assert (sent.read(1), sent.read(0)) == (0x170020, 0)
    assert [sent.read(0x10 + 2 * line) for line in range(24)] == [MASKED] * 24
    sent.write(0, 0xFFFFFFFF)
    assert (sent.read(0), sent.read(2)) == (0x0F000000, 0x0F000000)
    sent.write(0x10, 0xFFFFFFFF)
    sent.write(0x11, 0xFFFFFFFF)
    assert (sent.read(0x10), sent.read(0x11)) == (0x1AFFF, 0xFF000000)
    assert (sent.read(0x40), sent.io_apic.read(WINDOW, 1), sent.io_apic.read(0x20, 4)) == (0, 0, 0)


def test_an_edge_makes_one_message() -> None:
    sent = Sent()
    sent.route(3, 0x45 | LOGICAL | 1 << 8, 0x81)
    for is_high in (True, True, False, True):
        sent.io_apic.set_line(3, is_high)
    message = (0xFEE00000 | 0x81 << 12 | 4, 0x45 | 1 << 8 | 1 << 14)
    assert sent.messages == [message, message]


def test_an_edge_at_a_masked_entry_is_lost() -> None:
    sent = Sent()
    sent.route(3, 0x45 | MASKED)
    sent.io_apic.set_line(3, True)
    sent.route(3, 0x45)
    assert sent.messages == []


@pytest.mark.parametrize("by_register", [False, True])
def test_a_level_is_sent_again_until_it_falls(by_register: bool) -> None:
    """After the end of interrupt, and not before; also where it was high while masked."""
    sent = Sent()
    sent.route(5, 0x51 | LEVEL | MASKED)
    sent.io_apic.set_line(5, True)
    assert sent.messages == []
    sent.route(5, 0x51 | LEVEL)
    assert len(sent.messages) == 1
    sent.io_apic.set_line(5, True)
    assert (len(sent.messages), sent.read(0x1A)) == (1, 0x51 | LEVEL | REMOTE_IRR)

    def end(vector: int) -> None:
        if by_register:
            sent.io_apic.write(EOI, 4, vector)
        else:
            sent.io_apic.end_of_interrupt(vector)

    end(0x52)
    assert len(sent.messages) == 1
    end(0x51)
    assert len(sent.messages) == 2
    sent.io_apic.set_line(5, False)
    end(0x51)
    assert (len(sent.messages), sent.read(0x1A)) == (2, 0x51 | LEVEL)
    assert sent.messages[0] == (0xFEE00000, 0x51 | LEVEL | 1 << 14)


def test_the_8259_can_be_passed_on() -> None:
    """Delivery mode ExtINT: the vector is the 8259's."""
    sent = Sent()
    sent.route(0, 7 << 8)
    sent.io_apic.set_line(0, True)
    assert sent.messages == [(0xFEE00000, 0x33 | 1 << 14)]


# -- through the whole board --------------------------------------------------------------------


def store(address: int, word: int) -> bytes:
    """mov dword [address], word, in 32-bit code."""
    return b"\xc7\x05" + struct.pack("<II", address, word)


def out8(port: int, value: int) -> bytes:
    return bytes((0xB0, value, 0xE6, port))


def drive(line: int, level: int) -> bytes:
    """pc-testdev's interrupt line: mov al, level; mov dx, port; out dx, al"""
    return bytes((0xB0, level)) + b"\x66\xba" + struct.pack("<H", 0x2000 + line) + b"\xee"


def io_apic(register: int, word: int) -> bytes:
    return store(0xFEC00000, register) + store(0xFEC00010, word)


COUNT = b"\xff\x05\x00\x05\x00\x00"  # inc dword [500h]
END_OF_INTERRUPT = store(0xFEE000B0, 0)


def with_handler(code: bytes, handler: bytes) -> bytes:
    """A multiboot image with `handler`, its end and IRET behind vector 40h."""
    at, table = 0x100000 + 32, 0x108000
    code = b"\x0f\x01\x1d" + struct.pack("<I", table - 8) + code + FOREVER  # lidt [table - 8]
    entry = at + len(code)
    code += handler + END_OF_INTERRUPT + b"\xcf"
    gate = struct.pack("<HHHH", entry & 0xFFFF, 8, 0x8E00, entry >> 16)
    pointer = struct.pack("<HI2x", 8 * 0x41 - 1, table)
    return multiboot(code.ljust(table - 8 - at, b"\0") + pointer + bytes(8 * 0x40) + gate)


@pytest.mark.parametrize("cpu", ["max", "zen5"])
@pytest.mark.parametrize("engine", ["jit", "interp"])
def test_the_timer_interrupts_through_the_third_pin(engine: str, cpu: str) -> None:
    """The PIT at 1000 Hz, five times; both 8259s are masked."""
    code = out8(0x21, 0xFF) + out8(0xA1, 0xFF) + out8(0x43, 0x34) + out8(0x40, 0xA9)
    code += out8(0x40, 4) + io_apic(0x14, 0x40) + b"\xfb"
    loop = HLT + b"\x83\x3d\x00\x05\x00\x00\x05\x72\xf6"  # hlt; cmp dword [500h], 5; jb
    done = run(with_handler(code + loop + END, COUNT), engine=engine, cpu=cpu)
    assert done.ending.status == STATUS


@pytest.mark.parametrize("cpu", ["max", "zen5"])
def test_a_level_triggered_line_interrupts_until_the_handler_lowers_it(cpu: str) -> None:
    """Line 10; the handler lowers it the third time."""
    code = io_apic(0x24, 0x40 | LEVEL) + b"\xfb" + drive(10, 1)
    code += b"\x83\x3d\x00\x05\x00\x00\x03\x72\xf7" + b"\x90" * 8  # cmp dword [500h], 3; jb
    code += b"\xa0\x00\x05\x00\x00\xe6\xf4"  # mov al, [500h]; out 0f4h, al
    lower = b"\x50\x52" + drive(10, 0) + b"\x5a\x58"
    unless = b"\x83\x3d\x00\x05\x00\x00\x03\x72" + bytes((len(lower),))
    done = run(with_handler(code, COUNT + unless + lower), cpu=cpu)
    assert done.ending.status == 3 << 1 | 1
