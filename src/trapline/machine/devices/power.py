"""Ports that reset the machine or switch it off: 0x92, and ACPI's PM1a control register."""

from __future__ import annotations

from collections.abc import Callable

_A20, _FAST_RESET = 2, 1
_SLP_EN, _SLP_TYP_SHIFT = 1 << 13, 10
_SOFT_OFF = 0  # the sleep type QEMU's tables give S5


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
        return 1  # SCI_EN: there is no other mode

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 2 and value & _SLP_EN and value >> _SLP_TYP_SHIFT & 7 == _SOFT_OFF:
            self._power_off()
