"""The MC146818 clock and its CMOS memory (ports 0x70, 0x71), with the sizes firmware keeps there.

The periodic and the update-ended interrupt are here; the alarm is not, nor setting the time.
Motorola, "MC146818A Real-Time Clock Plus RAM".
"""

from __future__ import annotations

import time
from collections.abc import Callable

_A, _B, _C, _D = 0x0A, 0x0B, 0x0C, 0x0D
_PERIODIC, _UPDATE, _BINARY, _HOURS_24, _SET = 0x40, 0x10, 0x04, 0x02, 0x80
_REQUEST = 0x80
_UPDATING = 0x80  # in register A: UIP
_NOTICE = 244_000  # nanoseconds from UIP's rise to the change of the time
_DIVIDER, _HELD = 0x60, 0x60
_STEP = 1_000_000  # deadlines are whole milliseconds: asked twice, they are the same
_SECOND = 1_000_000_000
_MIB = 1 << 20


class Rtc:
    """`set_line` is IRQ 8, `clock` the time in nanoseconds from any beginning, `wall` since the
    epoch, which is what the clock shows."""

    def __init__(
        self,
        below: int,
        above: int,
        set_line: Callable[[bool], None],
        clock: Callable[[], int],
        cpus: int = 1,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        """`below` and `above`: bytes of memory below and above 4 GiB."""
        self._set_line, self._clock, self._wall = set_line, clock, wall
        self._index = 0
        self._cmos = bytearray(128)
        self._cmos[_A], self._cmos[_B], self._cmos[_D] = 0x26, _HOURS_24, 0x80
        extended = min(max(below - _MIB, 0) // 1024, 0xFFFF)
        more = min(max(below - 16 * _MIB, 0) >> 16, 0xFFFF)
        self._put(0x15, 2, 640)
        self._put(0x17, 2, min(extended, 0xFC00))
        self._put(0x30, 2, min(extended, 0xFC00))
        self._put(0x34, 2, more)
        self._put(0x5B, 3, above >> 16)
        self._put(0x5F, 1, cpus - 1)
        self._last = clock()
        self._second = wall() // _SECOND  # as far as updates have been noticed

    def _put(self, start: int, size: int, number: int) -> None:
        self._cmos[start : start + size] = number.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> int:
        if offset == 0:
            return 0xFF
        if self._index <= 9 or self._index == 0x32:
            return self._time()
        if self._index == _A:
            return self._cmos[_A] | (_UPDATING if self._is_updating() else 0)
        if self._index == _C:
            self.tick()
            causes, self._cmos[_C] = self._cmos[_C], 0
            self._set_line(False)
            return causes
        return self._cmos[self._index]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._index = value & 0x7F  # bit 7 masks NMIs, of which there are none
        elif self._index in (_A, _B):
            self.tick()
            self._cmos[self._index] = value & 0x7F if self._index == _A else value
            self._last = self._clock()
            self._request()  # what was there before it was enabled
        elif self._index not in (_C, _D):
            self._cmos[self._index] = value

    def _time(self) -> int:
        now = time.gmtime(self._wall() // _SECOND)
        fields = {
            0: now.tm_sec, 2: now.tm_min, 4: self._hours(now.tm_hour),
            6: now.tm_wday + 2 if now.tm_wday < 6 else 1,
            7: now.tm_mday, 8: now.tm_mon, 9: now.tm_year % 100, 0x32: now.tm_year // 100,
        }  # fmt: skip
        if self._index not in fields:  # the alarm's registers
            return self._cmos[self._index]
        number = fields[self._index]
        afternoon, number = number & 0x80, number & 0x7F
        if not self._cmos[_B] & _BINARY:
            number = number // 10 << 4 | number % 10
        return afternoon | number

    def _hours(self, hour: int) -> int:
        if self._cmos[_B] & _HOURS_24:
            return hour
        return ((hour + 11) % 12 + 1) | (0x80 if hour >= 12 else 0)

    def _runs(self) -> bool:
        """Whether the time goes on: not while it is being set, nor with the divider held."""
        return not self._cmos[_B] & _SET and self._cmos[_A] & _DIVIDER != _HELD

    def _is_updating(self) -> bool:
        return self._runs() and self._wall() % _SECOND >= _SECOND - _NOTICE

    def _period(self) -> int | None:
        """Nanoseconds between two periodic interrupts, None if none is wanted."""
        rate = self._cmos[_A] & 0xF
        if not self._cmos[_B] & _PERIODIC or not rate:
            return None
        shift = rate + 6 if rate < 3 else rate - 1  # rates 1 and 2 are 8 and 9 again
        return _SECOND * (1 << shift) // 32768

    def tick(self) -> None:
        """Notice what has happened since the last call; the line rises if it is asked for."""
        period = self._period()
        passed = self._clock() - self._last
        if period is not None and passed >= period:
            self._last += passed // period * period
            self._cmos[_C] |= _PERIODIC
        second = self._wall() // _SECOND
        if second > self._second and self._runs():
            self._cmos[_C] |= _UPDATE  # whether or not it interrupts
        self._second = second
        self._request()

    def _request(self) -> None:
        if self._cmos[_C] & self._cmos[_B] & (_PERIODIC | _UPDATE):
            self._cmos[_C] |= _REQUEST
            self._set_line(True)

    def deadline(self) -> int | None:
        """When the next interrupt is due."""
        period, times = self._period(), []
        if period is not None:
            times.append(self._last + period)
        if self._cmos[_B] & _UPDATE and self._runs():
            due = self._clock() + _SECOND - self._wall() % _SECOND
            times.append(-(-due // _STEP) * _STEP)
        return min(times, default=None)
