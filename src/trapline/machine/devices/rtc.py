"""The MC146818 clock and its CMOS memory (ports 0x70, 0x71), with the sizes firmware keeps there.

The periodic and the update-ended interrupt are here; the alarm is not, nor setting the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_A, _B, _C, _D = 0x0A, 0x0B, 0x0C, 0x0D
_PERIODIC, _UPDATE, _BINARY, _HOURS_24, _SET = 0x40, 0x10, 0x04, 0x02, 0x80
_REQUEST = 0x80
_SECOND = 1_000_000_000
_MIB = 1 << 20


class Rtc:
    """`set_line` is IRQ 8, `clock` the time in nanoseconds from any beginning."""

    def __init__(
        self,
        below: int,
        above: int,
        set_line: Callable[[bool], None],
        clock: Callable[[], int],
        cpus: int = 1,
    ) -> None:
        """`below` and `above`: bytes of memory below and above 4 GiB."""
        self._set_line, self._clock = set_line, clock
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

    def _put(self, start: int, size: int, number: int) -> None:
        self._cmos[start : start + size] = number.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> int:
        if offset == 0:
            return 0xFF
        if self._index <= 9 or self._index == 0x32:
            return self._time()
        if self._index == _C:
            causes, self._cmos[_C] = self._cmos[_C], 0
            self._set_line(False)
            return causes
        return self._cmos[self._index]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._index = value & 0x7F  # bit 7 masks NMIs, of which there are none
        elif self._index == _A:
            self._cmos[_A] = value & 0x7F
            self._last = self._clock()
        elif self._index not in (_C, _D):
            if self._index == _B:
                self._last = self._clock()
            self._cmos[self._index] = value

    def _time(self) -> int:
        now = time.gmtime()
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

    def _period(self) -> int | None:
        """Nanoseconds between two interrupts, None if none is wanted."""
        enabled, rate = self._cmos[_B], self._cmos[_A] & 0xF
        if enabled & _PERIODIC and rate:
            shift = rate + 6 if rate < 3 else rate - 1  # rates 1 and 2 are 8 and 9 again
            return _SECOND * (1 << shift) // 32768
        if enabled & _UPDATE and not enabled & _SET:
            return _SECOND
        return None

    def tick(self) -> None:
        """Raise the line if a period has passed since the last call."""
        period = self._period()
        passed = self._clock() - self._last
        if period is None or passed < period:
            return
        self._last += passed // period * period
        wanted = self._cmos[_B] & (_PERIODIC | _UPDATE)
        self._cmos[_C] |= _REQUEST | (_PERIODIC if wanted & _PERIODIC else _UPDATE)
        self._set_line(True)

    def deadline(self) -> int | None:
        """When the next interrupt is due."""
        period = self._period()
        return None if period is None else self._last + period
