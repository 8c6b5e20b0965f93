"""QEMU's fw_cfg: a selector and a data port, files by name, and the DMA interface.

QEMU, docs/specs/fw_cfg.  Nothing can be written; a DMA write is answered with its error bit.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Protocol

_SIGNATURE, _ID, _UUID, _RAM_SIZE, _NO_GRAPHICS, _CPUS = 0, 1, 2, 3, 4, 5
_MAX_CPUS, _DIRECTORY, _FIRST_FILE = 0xF, 0x19, 0x20
_TRADITIONAL, _DMA = 1, 2
_KEY = 0xBFFF  # without the bit that once chose a channel for writing
_FILE = struct.Struct(">IHH56s")
_ERROR, _READ, _SKIP, _SELECT, _WRITE = 1, 2, 4, 8, 16
_REQUEST = struct.Struct(">IIQ")
_DMA_SIGNATURE = b"QEMU CFG"
_PIECE = 1 << 16


class Memory(Protocol):
    """The guest's memory, for DMA."""

    def has(self, guest_physical: int, size: int) -> bool: ...

    def read(self, guest_physical: int, size: int) -> bytes: ...

    def write(self, guest_physical: int, data: bytes) -> None: ...


class FirmwareConfig:
    """Port 0 selects (16 bits); bytes read are the item's, past whose end come zeros."""

    def __init__(
        self, ram_size: int, cpus: int, files: Mapping[str, bytes], memory: Memory
    ) -> None:
        self._items = {
            _SIGNATURE: b"QEMU",
            _ID: (_TRADITIONAL | _DMA).to_bytes(4, "little"),
            _UUID: bytes(16),
            _RAM_SIZE: ram_size.to_bytes(8, "little"),
            _NO_GRAPHICS: (1).to_bytes(2, "little"),
            _CPUS: cpus.to_bytes(2, "little"),
            _MAX_CPUS: cpus.to_bytes(2, "little"),
        }
        directory = len(files).to_bytes(4, "big")
        for key, name in enumerate(sorted(files), _FIRST_FILE):
            self._items[key] = files[name]
            directory += _FILE.pack(len(files[name]), key, 0, name.encode())
        self._items[_DIRECTORY] = directory
        self.dma = FirmwareDma(self, memory)
        self.select(_SIGNATURE)

    def select(self, key: int) -> None:
        """Begin an item; of an unknown one all bytes are zeros."""
        self._item = self._items.get(key & _KEY, b"")
        self._offset = 0

    def take(self, size: int) -> bytes:
        """The next bytes of the item, as many as it has."""
        data = self._item[self._offset : self._offset + size]
        self._offset += size
        return data

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.take(1), "little") if size == 1 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and size == 2:
            self.select(value)


class FirmwareDma:
    """Two doublewords, big-endian: the address of a request, whose lower half starts it."""

    def __init__(self, config: FirmwareConfig, memory: Memory) -> None:
        self._config, self._memory = config, memory
        self._high = 0

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(_DMA_SIGNATURE[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 4 or offset % 4:
            return
        half = int.from_bytes(value.to_bytes(4, "little"), "big")
        if offset == 0:
            self._high = half
            return
        request, self._high = self._high << 32 | half, 0
        if self._memory.has(request, _REQUEST.size):
            is_done = self._transfer(*_REQUEST.unpack(self._memory.read(request, _REQUEST.size)))
            self._memory.write(request, (0 if is_done else _ERROR).to_bytes(4, "big"))

    def _transfer(self, control: int, size: int, target: int) -> bool:
        if control & _SELECT:
            self._config.select(control >> 16)
        if control & _READ:
            return self._copy(size, target)
        if control & (_WRITE | _SKIP):
            self._config.take(size)
        return not control & _WRITE

    def _copy(self, size: int, target: int) -> bool:
        if not self._memory.has(target, size):
            return False
        for start in range(0, size, _PIECE):
            piece = min(_PIECE, size - start)
            self._memory.write(target + start, self._config.take(piece).ljust(piece, b"\0"))
        return True
