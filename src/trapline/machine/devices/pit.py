"""The 8254 interval timer, and the port (0x61) that gates and shows its third channel.

Intel, "8254 Programmable Interval Timer".  Time is given by the board, in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Callable

FREQUENCY = 1193182
_SECOND = 1_000_000_000
_CONTROL = 3
_READ_BACK = 3
_LOW, _HIGH, _BOTH = 1, 2, 3
_PERIODIC = (2, 3)


def _clocks(time: int) -> int:
    return time * FREQUENCY // _SECOND


class Channel:
    """One counter.  Its count is worked out from the time when somebody asks."""

    def __init__(self) -> None:
        self.mode, self.access, self.is_bcd = 3, _BOTH, False
        self.reload = 0x10000
        self.start = 0  # the clock at which counting began
        self.gate = True
        self.is_armed = True  # a count has been loaded
        self._half: int | None = None  # the low byte of a 16-bit count on its way in
        self._reads_high = False
        self._latched: list[int] = []
        self._has_status = False  # the first of those latched

    def control(self, word: int) -> None:
        self.access, self.mode = word >> 4 & 3, word >> 1 & 7
        if self.mode > 5:
            self.mode -= 4
        self.is_bcd = bool(word & 1)
        self.is_armed = self._reads_high = False
        self._half = None
        self._latched.clear()
        self._has_status = False

    def write(self, byte: int, now: int) -> None:
        if self.access == _BOTH:
            if self._half is None:
                self._half = byte
                return
            byte, self._half = self._half | byte << 8, None
        elif self.access == _HIGH:
            byte <<= 8
        if self.is_bcd:
            byte = _from_bcd(byte)
        self.reload = byte or (10000 if self.is_bcd else 0x10000)
        self.start = now
        self.is_armed = True

    def trigger(self, gate: bool, now: int) -> None:
        """A change of the gate; its rising edge restarts all modes but 0 and 4."""
        if gate and not self.gate and self.mode not in (0, 4):
            self.start = now
        self.gate = gate

    def elapsed(self, now: int) -> int:
        return max(0, now - self.start)

    def count(self, now: int) -> int:
        elapsed = self.elapsed(now)
        if self.mode == 3:
            count = self.reload - 2 * elapsed % self.reload
        elif self.mode == 2:
            count = self.reload - elapsed % self.reload
        else:
            count = self.reload - elapsed & 0xFFFF
        return _to_bcd(count % 10000) if self.is_bcd else count & 0xFFFF

    def output(self, now: int) -> bool:
        elapsed = self.elapsed(now)
        match self.mode:
            case 0 | 1:
                return self.is_armed and elapsed >= self.reload
            case 2:
                return not self.gate or elapsed % self.reload != self.reload - 1
            case 3:
                return not self.gate or elapsed % self.reload < (self.reload + 1) // 2
        return elapsed != self.reload

    def latch_count(self, now: int) -> None:
        if len(self._latched) == self._has_status:
            count = self.count(now)
            parts = {_LOW: [count & 0xFF], _HIGH: [count >> 8]}
            self._latched += parts.get(self.access, [count & 0xFF, count >> 8])

    def latch_status(self, now: int) -> None:
        """A second one before the first is read is ignored, as of a count."""
        if self._has_status:
            return
        self._has_status = True
        status = self.output(now) << 7 | (not self.is_armed) << 6 | self.access << 4
        self._latched.insert(0, status | self.mode << 1 | self.is_bcd)

    def read(self, now: int) -> int:
        if self._latched:
            self._has_status = False
            return self._latched.pop(0)
        count = self.count(now)
        if self.access == _BOTH:
            self._reads_high = not self._reads_high
            return count & 0xFF if self._reads_high else count >> 8
        return count >> 8 if self.access == _HIGH else count & 0xFF


class Pit:
    """Four ports (0x40).  `set_line` is channel 0's output, `clock` the time in nanoseconds."""

    def __init__(self, set_line: Callable[[bool], None], clock: Callable[[], int]) -> None:
        self._set_line, self._clock = set_line, clock
        self.channels = [Channel() for _ in range(3)]
        self.channels[0].mode = 2  # as a PC's firmware leaves it
        self.channels[2].gate = False
        now = self._now()
        for channel in self.channels:
            channel.start = now
        self._ticks = 0  # rising edges of channel 0 that the line has seen
        self.speaker = SpeakerPort(self)

    def _now(self) -> int:
        return _clocks(self._clock())

    def read(self, offset: int, size: int) -> int:
        return 0 if offset == _CONTROL else self.channels[offset].read(self._now())

    def write(self, offset: int, size: int, value: int) -> None:
        now = self._now()
        if offset != _CONTROL:
            self.channels[offset].write(value, now)
            if offset == 0:
                self._ticks = 0
            return
        number = value >> 6
        if number == _READ_BACK:
            for i, channel in enumerate(self.channels):
                if value >> i + 1 & 1:
                    if not value & 0x20:
                        channel.latch_count(now)
                    if not value & 0x10:
                        channel.latch_status(now)
        elif value & 0x30 == 0:
            self.channels[number].latch_count(now)
        else:
            self.channels[number].control(value)
            if number == 0 and self.channels[0].mode == 0:
                self._set_line(False)

    def tick(self) -> None:
        """Raise the interrupt line if it has risen since the last call; missed ones are lost."""
        channel = self.channels[0]
        if not channel.is_armed:
            return
        passed = channel.elapsed(self._now()) // channel.reload
        if passed > self._ticks and (channel.mode in _PERIODIC or not self._ticks):
            self._ticks = passed
            self._set_line(False)
            self._set_line(True)

    def deadline(self) -> int | None:
        """When the line rises next; None if it will not."""
        channel = self.channels[0]
        if not channel.is_armed or (channel.mode not in _PERIODIC and self._ticks):
            return None
        clocks = channel.start + (self._ticks + 1) * channel.reload
        return -(-clocks * _SECOND // FREQUENCY)

    def gate_speaker(self, is_open: bool) -> None:
        self.channels[2].trigger(is_open, self._now())

    def speaker_output(self) -> bool:
        return self.channels[2].output(self._now())


class SpeakerPort:
    """Port 0x61: bit 0 gates channel 2, bit 5 shows its output, bit 4 toggles as refresh did."""

    def __init__(self, pit: Pit) -> None:
        self._pit = pit
        self._written = 0
        self._refresh = 0

    def read(self, offset: int, size: int) -> int:
        self._refresh ^= 0x10
        return self._written | self._refresh | self._pit.speaker_output() << 5

    def write(self, offset: int, size: int, value: int) -> None:
        self._written = value & 3
        self._pit.gate_speaker(bool(value & 1))


def _from_bcd(word: int) -> int:
    return sum((word >> 4 * i & 0xF) * 10**i for i in range(4))


def _to_bcd(count: int) -> int:
    return sum(count // 10**i % 10 << 4 * i for i in range(4))
