"""What switches the machine off and resets it: port 0x92, and ACPI's PM1a registers with the
timer beside them.
"""

from __future__ import annotations

from collections.abc import Callable

_A20, _FAST_RESET = 2, 1
_SLP_EN, _SLP_TYP_SHIFT = 1 << 13, 10
_SOFT_OFF = 0  # the sleep type QEMU's tables give S5
_SCI_EN = 1
_TIMER_FREQUENCY = 3579545
_SECOND = 1_000_000_000


class SystemControl:
    """Port 0x92: bit 0 resets; bit 1 is A20, which is always open here."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset

    def read(self, offset: int, size: int) -> int:
        return _A20

    def write(self, offset: int, size: int, value: int) -> None:
        if value & _FAST_RESET:
            self._reset()


class AcpiControl:
    """PM1a_CNT (ACPI, "PM1 Control Registers"): SLP_EN with the type of S5 is power off."""

    def __init__(self, power_off: Callable[[], None]) -> None:
        self._power_off = power_off

    def read(self, offset: int, size: int) -> int:
        return _SCI_EN  # there is no other mode

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 2 and value & _SLP_EN and value >> _SLP_TYP_SHIFT & 7 == _SOFT_OFF:
            self._power_off()


class AcpiEvents:
    """PM1a_EVT (ACPI, "PM1 Event Grouping"): no event ever happens; what is enabled is kept."""

    def __init__(self) -> None:
        self._enabled = 0

    def read(self, offset: int, size: int) -> int:
        return self._enabled << 16 >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 2 and offset == 2:
            self._enabled = value
        elif size == 4:
            self._enabled = value >> 16


class AcpiTimer:
    """PM_TMR (ACPI, "Power Management Timer"): 24 bits at 3.579545 MHz; `clock` in
    nanoseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock

    def read(self, offset: int, size: int) -> int:
        count = self._clock() * _TIMER_FREQUENCY // _SECOND & 0xFFFFFF
        return count >> 8 * offset

    def write(self, offset: int, size: int, value: int) -> None:
        """It cannot be set."""
