"""The buses, and the devices by which a machine for test guests differs from a PC: fw_cfg and
pc-testdev.
"""

from __future__ import annotations

import random
import struct

import pytest

from trapline.kvm import exits, open_kvm
from trapline.machine import Board
from trapline.machine.bus import PORTS, MemoryBus, PortBus
from trapline.machine.devices import EchoPorts, FirmwareConfig, Window
from trapline.machine.memory import Memory

MIB = 1 << 20


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
