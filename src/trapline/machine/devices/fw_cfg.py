"""QEMU's fw_cfg by its two ports: a selector and a data port that reads the chosen item.

QEMU, docs/specs/fw_cfg; neither its DMA interface nor its files are here.
"""

from __future__ import annotations

_SIGNATURE, _ID, _UUID, _RAM_SIZE, _NO_GRAPHICS, _CPUS = 0, 1, 2, 3, 4, 5
_MAX_CPUS, _FILES = 0xF, 0x19
_TRADITIONAL = 1


class FirmwareConfig:
    """Port 0 selects (16 bits), port 1 reads byte after byte; past the end come zeros."""

    def __init__(self, ram_size: int, cpus: int) -> None:
        self._items = {
            _SIGNATURE: b"QEMU",
            _ID: _TRADITIONAL.to_bytes(4, "little"),
            _UUID: bytes(16),
            _RAM_SIZE: ram_size.to_bytes(8, "little"),
            _NO_GRAPHICS: (1).to_bytes(2, "little"),
            _CPUS: cpus.to_bytes(2, "little"),
            _MAX_CPUS: cpus.to_bytes(2, "little"),
            _FILES: (0).to_bytes(4, "big"),
        }
        self._chosen = b""
        self._offset = 0

    def read(self, offset: int, size: int) -> int:
        if offset == 0 or size != 1 or self._offset >= len(self._chosen):
            return 0
        self._offset += 1
        return self._chosen[self._offset - 1]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and size == 2:
            self._chosen = self._items.get(value & 0x3FFF, b"")
            self._offset = 0
