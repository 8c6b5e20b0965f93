"""Each device by itself, against its manual; time is what the test says it is."""

from __future__ import annotations

import random
import struct

import pytest

from trapline.kvm import exits, open_kvm
from trapline.machine import Board
from trapline.machine.bus import PORTS, MemoryBus, PortBus
from trapline.machine.devices import (
    DebugExit,
    EchoPorts,
    FirmwareConfig,
    KeyboardController,
    PciPorts,
    PicPair,
    Pit,
    Rtc,
    Serial,
    Window,
)
from trapline.machine.memory import Memory

SECOND = 1_000_000_000
MIB = 1 << 20


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


# The bus


def test_an_empty_port_reads_as_ones_and_swallows_writes() -> None:
    ports = PortBus()
    assert [ports.read(0x80, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    ports.write(0x80, 4, 0)


def test_wide_accesses_of_narrow_devices_become_bytes() -> None:
    """As the ISA bus does it: the next bytes go to the next ports."""
    ports, echo = PortBus(), EchoPorts()
    ports.attach(echo, 0x10, 2)
    ports.write(0x10, 4, 0x44332211)
    assert ports.read(0x10, 2) == 0x2211
    assert ports.read(0x10, 4) == 0xFFFF2211
    with pytest.raises(ValueError, match="0x11 is taken"):
        ports.attach(echo, 0x11, 1)


def test_an_access_that_leaves_a_device_is_taken_apart() -> None:
    ports, echo = PortBus(), EchoPorts()
    ports.attach(echo, 0x10, 4, 4)
    ports.write(0x10, 4, 0x44332211)
    assert ports.read(0x12, 4) == 0xFFFF4433
    ports.write(0x13, 2, 0x5566)
    assert ports.read(0x10, 4) == 0x66332211


class Told:
    """A device that keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.asked.append((offset, size))
        return -1 if offset else 0x0403020100

    def write(self, offset: int, size: int, value: int) -> None:
        self.asked.append((offset, size))


def test_device_memory_meets_aligned_accesses_that_it_can_take() -> None:
    bus, told = MemoryBus(), Told()
    bus.attach(told, 0x1000, 0x100, 4)
    assert bus.read(0x1000, 4) == bytes(4)[:1] + b"\1\2\3"
    bus.write(0x1001, bytes(7))
    assert bus.read(0x10FE, 4) == b"\xff" * 4
    assert told.asked == [(0, 4), (1, 1), (2, 2), (4, 4), (0xFE, 2)]
    with pytest.raises(ValueError, match="0x10ff is taken"):
        bus.attach(told, 0x10FF, 1)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8])
def test_the_test_window_keeps_what_is_written_and_the_rest_reads_as_ones(size: int) -> None:
    bus = MemoryBus()
    bus.attach(Window(), 0xFF000000, Window.SIZE, 8)
    data = bytes(range(1, 1 + size))
    for at in (0xFF000000, 0xFF000003, 0xFF010000 - size):
        bus.serve(exits.Mmio(at, size, True, bytearray(data.ljust(8, b"\x99"))))
        answer = bytearray(8)
        bus.serve(exits.Mmio(at, size, False, answer))
        assert answer == data.ljust(8, b"\0")
    bus.write(0xFF00FFFF, b"\x77" * size)
    assert bus.read(0xFF00FFFF, size) == b"\x77" + b"\xff" * (size - 1)
    assert bus.read(0xFEFFFFFF, size)[:1] == b"\xff"
    assert bus.read((1 << 64) - 1, size) == b"\xff" * size


def test_an_exit_with_several_items_is_served_item_by_item() -> None:
    ports = PortBus()
    ports.attach(EchoPorts(), 0x10, 4, 4)
    ports.serve(exits.Io(1, 2, 0x10, 2, bytearray(b"\1\2\3\4")))
    read = exits.Io(0, 2, 0x10, 2, bytearray(4))
    ports.serve(read)
    assert read.data == b"\3\4\3\4"


def test_no_device_minds_odd_sizes_and_values() -> None:
    """Every port, at every size, with values of every kind, in a random order."""
    board = Board(open_kvm(), 1 << 20, lambda data: None)
    chance = random.Random(7)
    accesses = [(port, size) for port in range(PORTS) for size in (1, 2, 4)]
    chance.shuffle(accesses)
    for port, size in accesses:
        board.ports.write(port, size, chance.getrandbits(8 * size))
        assert 0 <= board.ports.read(port, size) < 1 << 8 * size
        if port < 0x800:
            board.tick()
            board.deadline()
            if board.pics.has_interrupt:
                assert 0 <= board.pics.acknowledge() < 256
    board.close()


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


@pytest.mark.parametrize(
    ("value", "status"), [(0, 1), (1, 3), (0x10, 0x21), (0x7F, 0xFF), (0x80, 1)]
)
def test_debug_exit_statuses(value: int, status: int) -> None:
    statuses: list[int] = []
    DebugExit(statuses.append).write(0, 1, value)
    assert statuses == [status]


def test_firmware_configuration_reads_bytewise() -> None:
    config = FirmwareConfig(64 << 20, 1, {"opt/a": b"one", "etc/b": b""}, Memory(MIB))

    def item(key: int, size: int) -> bytes:
        config.write(0, 2, key)
        return bytes(config.read(1, 1) for _ in range(size))

    assert item(0, 6) == b"QEMU\0\0"
    assert item(3, 8) == (64 << 20).to_bytes(8, "little")
    assert item(5, 2) == b"\1\0"
    assert item(0x1234, 2) == item(0x8000, 2) == b"\0\0"
    first, second = struct.pack(">IHH56s", 0, 32, 0, b"etc/b"), struct.pack(">IH", 3, 33)
    assert item(25, 74) == struct.pack(">I", 2) + first + second
    assert item(33, 4) == b"one\0"


def test_firmware_configuration_by_dma() -> None:
    """A request is answered in place: 0, or the error bit; its target gets zeros past the end."""
    memory = Memory(MIB)
    config = FirmwareConfig(64 << 20, 1, {"opt/a": b"one"}, memory)

    def ask(control: int, size: int, target: int = 0x2000) -> int:
        memory.write(0x1000, struct.pack(">IIQ", control, size, target))
        config.dma.write(0, 4, 0)
        config.dma.write(4, 4, int.from_bytes(struct.pack(">I", 0x1000), "little"))
        return int(struct.unpack(">I", memory.read(0x1000, 4))[0])

    assert config.dma.read(0, 8).to_bytes(8, "little") == b"QEMU CFG"
    assert ask(32 << 16 | 8 | 2, 2) == 0
    assert memory.read(0x2000, 3) == b"on\0"
    assert ask(2, 5) == 0
    assert memory.read(0x2000, 5) == b"e\0\0\0\0"
    assert ask(32 << 16 | 8 | 4, 1) == 0
    assert config.read(1, 1) == ord("n")
    assert ask(16, 1) == 1  # nothing is for writing
    assert ask(2, 0xFFFFFFFF) == ask(2, 4, MIB - 2) == ask(2, 4, 1 << 63) == 1
    for nowhere in (0xFFFFFFFF, MIB - 8):
        config.dma.write(4, 4, int.from_bytes(struct.pack(">I", nowhere), "little"))


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


def test_the_clock_tells_the_time_and_the_size_of_memory() -> None:
    rtc = Rtc(64 << 20, 2 << 30, Line(), Clock())

    def cmos(index: int) -> int:
        rtc.write(0, 1, index)
        return rtc.read(1, 1)

    assert 1 <= (cmos(8) & 0xF) + 10 * (cmos(8) >> 4) <= 12
    assert cmos(0x32) == 0x20
    assert cmos(0x0D) == 0x80
    assert (cmos(0x34) | cmos(0x35) << 8) << 16 == 48 << 20
    assert (cmos(0x5B) | cmos(0x5C) << 8 | cmos(0x5D) << 16) << 16 == 2 << 30


def test_the_clocks_periodic_interrupt_repeats_only_once_read() -> None:
    clock, line = Clock(), Line()
    rtc = Rtc(1 << 20, 0, line, clock)
    rtc.write(0, 1, 0x0B)
    rtc.write(1, 1, 0x42)
    assert rtc.deadline() == clock.now + SECOND * 32 // 32768
    for rises in (1, 2):
        clock.now += SECOND // 1000
        rtc.tick()
        assert line.rises == rises
        rtc.write(0, 1, 0x0C)
        assert rtc.read(1, 1) == 0xC0
        assert not line.is_high
