"""The Bochs and QEMU debug port (0xE9): what is written is printed, reading says it is there."""

from __future__ import annotations

from collections.abc import Callable

_PRESENT = 0xE9


class DebugPort:
    """`send` is given each byte."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def read(self, offset: int, size: int) -> int:
        return _PRESENT

    def write(self, offset: int, size: int, value: int) -> None:
        self._send(bytes((value & 0xFF,)))
