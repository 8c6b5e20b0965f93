"""The MC146818 against its manual; both its clocks are what the test says they are."""

from __future__ import annotations

from tests.machine.test_devices import SECOND, Clock, Line
from trapline.machine.devices import Rtc

MIB = 1 << 20


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
    rtc = Rtc(1 << 20, 0, line, clock, wall=lambda: 0)
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


class Cmos:
    """The clock behind its two ports, five milliseconds after a full second."""

    def __init__(self) -> None:
        self.clock, self.line = Clock(), Line()
        self.offset = 1_700_000_000 * SECOND + SECOND // 200
        self.rtc = Rtc(MIB, 0, self.line, self.clock, wall=lambda: self.clock.now + self.offset)

    def read(self, index: int) -> int:
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def write(self, index: int, value: int) -> None:
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def wait(self, nanoseconds: int) -> None:
        self.clock.now += nanoseconds
        self.rtc.tick()


def test_the_clock_says_244_microseconds_before_that_its_time_will_change() -> None:
    """MC146818A, "Update Cycle": UIP; never while SET is 1 or the divider is held."""
    cmos = Cmos()
    first = cmos.read(0)
    cmos.wait(SECOND - SECOND // 200 - 250_000)
    assert (cmos.read(0x0A), cmos.read(0)) == (0x26, first)
    cmos.wait(10_000)
    assert (cmos.read(0x0A), cmos.read(0)) == (0xA6, first)
    for index, word in ((0x0B, 0x82), (0x0A, 0x66)):
        old = cmos.read(index) & 0x7F
        cmos.write(index, word)
        assert not cmos.read(0x0A) & 0x80
        cmos.write(index, old)
        assert cmos.read(0x0A) & 0x80
    cmos.wait(240_000)
    assert cmos.read(0x0A) == 0x26
    assert cmos.read(0) != first


def test_every_update_is_flagged_whether_it_interrupts_or_not() -> None:
    """MC146818A, "Register C": UF is set after each update cycle, and cleared by reading C."""
    cmos = Cmos()
    assert cmos.read(0x0C) == 0
    cmos.wait(3 * SECOND)
    assert (cmos.read(0x0C), cmos.read(0x0C), cmos.line.rises) == (0x10, 0, 0)
    cmos.write(0x0B, 0x82)  # being set: no updates
    cmos.wait(2 * SECOND)
    assert cmos.read(0x0C) == 0
    cmos.write(0x0B, 0x02)
    assert cmos.rtc.deadline() is None
    cmos.wait(SECOND)
    cmos.write(0x0B, 0x12)  # enabled with the flag set: at once
    assert (cmos.line.is_high, cmos.read(0x0C), cmos.line.is_high) == (True, 0x90, False)
    due = cmos.rtc.deadline()
    assert due is not None
    assert (due + cmos.offset) // SECOND == (cmos.clock.now + cmos.offset) // SECOND + 1
    cmos.wait(due - cmos.clock.now)
    assert (cmos.line.rises, cmos.read(0x0C)) == (2, 0x90)


def test_both_interrupts_of_the_clock_are_told_and_the_sooner_is_waited_for() -> None:
    cmos = Cmos()
    cmos.write(0x0A, 0x2F)  # twice a second
    cmos.write(0x0B, 0x52)
    begin = cmos.clock.now
    assert cmos.rtc.deadline() == begin + SECOND // 2
    cmos.wait(SECOND // 2)
    assert cmos.read(0x0C) == 0xC0
    due = cmos.rtc.deadline()
    assert due is not None
    assert SECOND // 2 < due - begin < SECOND
    cmos.wait(SECOND // 2)
    assert cmos.read(0x0C) == 0xD0
