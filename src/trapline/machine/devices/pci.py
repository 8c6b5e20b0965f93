"""PCI configuration by ports (0xCF8, 0xCFC): a bus without devices.

PCI Local Bus Specification, "Configuration Mechanism #1"; the second port's byte resets a PC.
"""

from __future__ import annotations

from collections.abc import Callable

_ADDRESS_MASK = 0x80FFFFFC
_RESET_CONTROL, _RESET_NOW = 1, 4


class PciPorts:
    """Eight ports: the address, which only a doubleword write sets, and data that is all ones."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset
        self._address = 0

    def read(self, offset: int, size: int) -> int:
        if offset == 0 and size == 4:
            return self._address
        return 0 if offset == _RESET_CONTROL and size == 1 else 0xFFFFFFFF

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and size == 4:
            self._address = value & _ADDRESS_MASK
        elif offset == _RESET_CONTROL and size == 1 and value & _RESET_NOW:
            self._reset()
