"""Each device by itself, against its manual; time is what the test says it is."""

from __future__ import annotations

import pytest

from trapline.machine.devices import (
    DebugExit,
    KeyboardController,
    PciPorts,
    PicPair,
    Pit,
    Serial,
)

SECOND = 1_000_000_000


class Clock:
    """A time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 10 * SECOND

    def __call__(self) -> int:
        return self.now


class Line:
    """An interrupt line that remembers how often it rose."""

    def __init__(self) -> None:
        self.is_high = False
        self.rises = 0

    def __call__(self, is_high: bool) -> None:
        self.rises += is_high and not self.is_high
        self.is_high = is_high


# The interrupt controllers


def started() -> PicPair:
    """Both controllers at vectors 20h and 28h, all lines open."""
    pics = PicPair()
    for chip, vector, cascade in ((pics.master, 0x20, 4), (pics.slave, 0x28, 2)):
        chip.write(0, 1, 0x11)
        for word in (vector, cascade, 1, 0):
            chip.write(1, 1, word)
    return pics


def test_lines_are_served_by_priority_and_not_twice() -> None:
    pics = started()
    for line in (6, 3, 12):
        pics.set_line(line, True)
    assert pics.acknowledge() == 0x2C  # the second controller is on line 2
    assert not pics.has_interrupt
    pics.slave.write(0, 1, 0x20)
    pics.master.write(0, 1, 0x20)
    assert pics.acknowledge() == 0x23
    assert not pics.has_interrupt  # 6 waits for the end of 3
    pics.master.write(0, 1, 0x20)
    assert pics.acknowledge() == 0x26
    pics.master.write(0, 1, 0x20)
    assert not pics.has_interrupt  # edges: the lines are still high


def test_a_masked_line_waits() -> None:
    pics = started()
    pics.master.write(1, 1, 0x08)
    pics.set_line(3, True)
    assert not pics.has_interrupt
    assert pics.is_masked(3)
    assert pics.master.read(0, 1) == 0x08  # requested
    pics.master.write(1, 1, 0)
    assert pics.acknowledge() == 0x23
    pics.master.write(0, 1, 0x0B)
    assert pics.master.read(0, 1) == 0x08  # in service


def test_a_level_line_asks_again_until_it_falls() -> None:
    pics = started()
    pics.master_elcr.write(0, 1, 0xFF)
    assert pics.master_elcr.read(0, 1) == 0xF8  # the timer, keyboard and cascade are edges
    pics.set_line(5, True)
    assert pics.acknowledge() == 0x25
    pics.master.write(0, 1, 0x20)
    assert pics.acknowledge() == 0x25
    pics.set_line(5, False)
    pics.master.write(0, 1, 0x20)
    assert not pics.has_interrupt


def test_automatic_end_and_rotation() -> None:
    """8259A, "Automatic Rotation": the line just served becomes the last."""
    pics = started()
    for line in (1, 4):
        pics.set_line(line, True)
    assert pics.acknowledge() == 0x21
    pics.master.write(0, 1, 0xA0)  # rotate on non-specific EOI
    pics.set_line(1, False)
    pics.set_line(1, True)
    assert pics.acknowledge() == 0x24
    pics.master.write(0, 1, 0x11)
    for word in (0x20, 4, 3, 0):  # ICW4: automatic EOI
        pics.master.write(1, 1, word)
    pics.set_line(7, True)
    assert pics.acknowledge() == 0x27
    assert pics.master.in_service == 0


def test_an_interrupt_that_went_away_is_the_spurious_one() -> None:
    assert started().acknowledge() == 0x27


def test_a_poll_acknowledges() -> None:
    pics = started()
    pics.set_line(4, True)
    pics.master.write(0, 1, 0x0C)
    assert pics.master.read(0, 1) == 0x84
    assert pics.master.in_service == 0x10


# The timer


def test_the_periodic_modes_interrupt_at_their_rate_and_lose_what_was_missed() -> None:
    clock, line = Clock(), Line()
    pit = Pit(line, clock)
    for port, byte in ((3, 0x34), (0, 0xA9), (0, 0x04)):
        pit.write(port, 1, byte)
    begun = clock.now
    deadline = pit.deadline()
    assert deadline is not None
    assert abs(deadline - begun - 1193 * SECOND // 1193182) <= 1000
    clock.now = deadline - 2000
    pit.tick()
    assert line.rises == 0
    clock.now = deadline
    pit.tick()
    pit.tick()
    assert line.rises == 1
    clock.now += 5_500_000
    pit.tick()
    assert line.rises == 2
    again = pit.deadline()
    assert again is not None and clock.now < again < clock.now + 1_000_000


def test_mode_0_interrupts_once() -> None:
    clock, line = Clock(), Line()
    pit = Pit(line, clock)
    pit.write(3, 1, 0x30)
    assert pit.deadline() is None  # no count yet
    pit.write(0, 1, 0xE8)
    pit.write(0, 1, 0x03)
    deadline = pit.deadline()
    assert deadline is not None
    clock.now = deadline
    pit.tick()
    clock.now += SECOND
    pit.tick()
    assert line.rises == 1
    assert pit.deadline() is None


def test_counts_go_down_and_can_be_latched() -> None:
    clock = Clock()
    pit = Pit(Line(), clock)
    for port, byte in ((3, 0x34), (0, 0x10), (0, 0x27)):  # 0x2710: ten thousand
        pit.write(port, 1, byte)
    clock.now += SECOND // 1000
    pit.write(3, 1, 0x00)  # latch
    clock.now += SECOND // 1000
    latched = pit.read(0, 1) | pit.read(0, 1) << 8
    live = pit.read(0, 1) | pit.read(0, 1) << 8
    assert abs(latched - (0x2710 - 1193)) <= 1
    assert abs(live - (0x2710 - 2386)) <= 1


def test_the_third_channel_is_gated_and_seen_through_the_speaker_port() -> None:
    """How kernels measure their clocks: mode 0, wait for bit 5 of port 61h."""
    clock = Clock()
    pit = Pit(Line(), clock)
    pit.speaker.write(0, 1, 1)
    for port, byte in ((3, 0xB0), (2, 0x9C), (2, 0x2E)):  # 11932 clocks: 10 ms
        pit.write(port, 1, byte)
    assert not pit.speaker.read(0, 1) & 0x20
    clock.now += 9 * SECOND // 1000
    assert not pit.speaker.read(0, 1) & 0x20
    clock.now += 2 * SECOND // 1000
    assert pit.speaker.read(0, 1) & 0x20


def test_read_back_gives_status_then_count() -> None:
    pit = Pit(Line(), Clock())
    for port, byte in ((3, 0x36), (0, 0x34), (0, 0x12)):
        pit.write(port, 1, byte)
    pit.write(3, 1, 0xC2)
    assert pit.read(0, 1) == 0x80 | 0x30 | 3 << 1  # output high, both bytes, mode 3
    assert pit.read(0, 1) | pit.read(0, 1) << 8 == 0x1234


def test_a_second_latch_is_ignored_until_the_first_is_read() -> None:
    """Intel, 8254, "Read-Back Command": of status as of counts."""
    pit = Pit(Line(), Clock())
    for port, byte in ((3, 0x36), (0, 0x34), (0, 0x12)):
        pit.write(port, 1, byte)
    status = 0x80 | 0x30 | 3 << 1
    pit.write(3, 1, 0xE2)  # status
    pit.write(3, 1, 0xE2)
    assert [pit.read(0, 1) for _ in range(3)] == [status, 0x34, 0x12]
    pit.write(3, 1, 0xE2)
    pit.write(3, 1, 0xC2)  # both: the status is latched already, the count is not
    pit.write(3, 1, 0xC2)
    assert [pit.read(0, 1) for _ in range(3)] == [status, 0x34, 0x12]
    pit.write(3, 1, 0xE2)
    assert pit.read(0, 1) == status


# The rest


def test_the_serial_port_sends_and_is_always_ready() -> None:
    sent, line = bytearray(), Line()
    serial = Serial(sent.extend, line)
    serial.write(3, 1, 0x80)
    serial.write(0, 1, 1)
    serial.write(3, 1, 0x03)
    for byte in b"ok":
        assert serial.read(5, 1) & 0x60 == 0x60
        serial.write(0, 1, byte)
    assert sent == b"ok"
    serial.write(7, 1, 0x5A)
    assert serial.read(7, 1) == 0x5A
    serial.write(3, 1, 0x83)
    assert serial.read(0, 1) == 1  # the divisor


def test_the_serial_port_interrupts_when_it_can_send() -> None:
    line = Line()
    serial = Serial(lambda data: None, line)
    assert serial.read(2, 1) == 1
    serial.write(1, 1, 2)
    assert line.is_high
    assert serial.read(2, 1) == 2
    assert not line.is_high  # reading acknowledged it
    serial.write(0, 1, 0x41)
    assert line.rises == 2


def test_loopback_brings_back_what_was_sent() -> None:
    """How drivers find a 16550."""
    sent = bytearray()
    serial = Serial(sent.extend, Line())
    serial.write(4, 1, 0x1E)
    assert serial.read(6, 1) == 0xD0  # RTS as CTS, the outputs as RI and DCD
    serial.write(0, 1, 0xAE)
    assert serial.read(5, 1) & 1
    assert serial.read(0, 1) == 0xAE
    assert not serial.read(5, 1) & 1
    assert sent == b""


def test_an_overrun_interrupts_before_all_else_until_the_line_status_is_read() -> None:
    """PC16550D, "Interrupt Control Functions": receiver line status, the highest priority."""
    line = Line()
    serial = Serial(lambda data: None, line)
    serial.write(4, 1, 0x1E)
    serial.write(1, 1, 4)
    serial.write(0, 1, 1)
    assert (line.is_high, serial.read(2, 1)) == (False, 1)
    serial.write(0, 1, 2)
    serial.write(1, 1, 7)
    assert (line.is_high, serial.read(2, 1)) == (True, 6)
    assert serial.read(5, 1) & 3 == 3
    assert serial.read(2, 1) == 4
    serial.read(0, 1)
    assert serial.read(2, 1) == 2
    assert (line.is_high, serial.read(2, 1)) == (False, 1)


@pytest.mark.parametrize(
    ("value", "status"), [(0, 1), (1, 3), (0x10, 0x21), (0x7F, 0xFF), (0x80, 1)]
)
def test_debug_exit_statuses(value: int, status: int) -> None:
    statuses: list[int] = []
    DebugExit(statuses.append).write(0, 1, value)
    assert statuses == [status]


def test_the_pci_bus_is_empty() -> None:
    pci = PciPorts(lambda: None)
    pci.write(0, 4, 0xFFFFFFFF)
    assert pci.read(0, 4) == 0x80FFFFFC
    assert pci.read(4, 4) == 0xFFFFFFFF


def test_the_keyboard_controller_tests_itself_and_opens_a20() -> None:
    resets: list[bool] = []
    keyboard = KeyboardController(lambda: resets.append(True))
    data, command = keyboard.at(0), keyboard.at(1)
    for asked, answer in ((0xAA, 0x55), (0xD0, 0x03), (0x20, 0x45)):
        command.write(0, 1, asked)
        assert command.read(0, 1) & 3 == 1
        assert data.read(0, 1) == answer
        assert command.read(0, 1) & 3 == 0
    command.write(0, 1, 0xD1)
    data.write(0, 1, 0xDF)
    assert not resets
    command.write(0, 1, 0xFE)
    assert resets
