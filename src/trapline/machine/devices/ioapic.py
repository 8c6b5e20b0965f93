"""The 82093AA I/O APIC: twenty-four lines, each with an entry that says which message it makes.

Intel, "82093AA I/O Advanced Programmable Interrupt Controller", with the EOI register of version
0x20.  Messages go out as a device's do, by address and data; who takes them is not known here.
"""

from __future__ import annotations

from collections.abc import Callable

_SELECT, _WINDOW, _EOI = 0x00, 0x10, 0x40
_ID, _TABLE = 0, 0x10
_VERSION_WORD = 0x20 | 23 << 16
_LOGICAL, _REMOTE_IRR, _LEVEL, _MASKED = 1 << 11, 1 << 14, 1 << 15, 1 << 16
_READ_ONLY = 1 << 12 | _REMOTE_IRR
_RESERVED = 0x00FFFFFFFFFE0000
_MODE_SHIFT, _NMI, _INIT, _EXTINT = 8, 4, 5, 7
_MESSAGES = 0xFEE00000
_ASSERT = 1 << 14


class IoApic:
    """`send` takes a message's address and data; `acknowledge` gives the 8259's vector, for
    entries that pass its interrupt on."""

    LINES = 24
    SIZE = 0x1000

    def __init__(self, send: Callable[[int, int], object], acknowledge: Callable[[], int]) -> None:
        self._send, self._acknowledge = send, acknowledge
        self._selected = self._id = 0
        self._entries = [_MASKED] * self.LINES
        self._lines = 0
        self._requested = 0

    def set_line(self, line: int, is_high: bool) -> None:
        bit = 1 << line
        rises = is_high and not self._lines & bit
        self._lines = self._lines | bit if is_high else self._lines & ~bit
        entry = self._entries[line]
        if entry & _LEVEL:
            self._requested = self._requested & ~bit | self._lines & bit
        elif rises and not entry & _MASKED:
            self._requested |= bit  # an edge at a masked entry is lost
        self._serve(line)

    def end_of_interrupt(self, vector: int) -> None:
        """A processor has ended a level-triggered interrupt: if its line is still high, again."""
        for line, entry in enumerate(self._entries):
            if entry & _LEVEL and entry & 0xFF == vector:
                self._entries[line] &= ~_REMOTE_IRR
                self._serve(line)

    def is_masked(self, line: int) -> bool:
        return bool(self._entries[line] & _MASKED)

    def is_unstoppable(self, line: int) -> bool:
        """Whether its message is taken by processors with interrupts off."""
        mode = self._entries[line] >> _MODE_SHIFT & 7
        return not self.is_masked(line) and mode in (_NMI, _INIT)

    def _serve(self, line: int) -> None:
        bit, entry = 1 << line, self._entries[line]
        if not self._requested & bit or entry & (_MASKED | _REMOTE_IRR):
            return
        vector, mode = entry & 0xFF, entry >> _MODE_SHIFT & 7
        if entry & _LEVEL:
            self._entries[line] |= _REMOTE_IRR
        else:
            self._requested &= ~bit
        if mode == _EXTINT:
            vector, mode = self._acknowledge(), 0
        address = _MESSAGES | entry >> 56 << 12 | (4 if entry & _LOGICAL else 0)
        self._send(address, vector | mode << _MODE_SHIFT | entry & _LEVEL | _ASSERT)

    # -- registers ------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        if offset == _SELECT:
            return self._selected
        return self._read_register() if offset == _WINDOW and size == 4 else 0

    def _read_register(self) -> int:
        match self._selected:
            case 0 | 2:  # the ID, and the arbitration ID, which follows it
                return self._id
            case 1:
                return _VERSION_WORD
        line, half = divmod(self._selected - _TABLE, 2)
        if 0 <= line < self.LINES:
            return self._entries[line] >> 32 * half & 0xFFFFFFFF
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == _SELECT:
            self._selected = value & 0xFF
        elif offset == _WINDOW and size == 4:
            self._write_register(value)
        elif offset == _EOI and size == 4:
            self.end_of_interrupt(value & 0xFF)

    def _write_register(self, word: int) -> None:
        if self._selected == _ID:
            self._id = word & 0x0F000000
        line, half = divmod(self._selected - _TABLE, 2)
        if not 0 <= line < self.LINES:
            return
        old, shift = self._entries[line], 32 * half
        new = old & ~(0xFFFFFFFF << shift) | word << shift
        new = (new & ~_READ_ONLY | old & _READ_ONLY) & ~_RESERVED
        if not new & _LEVEL:
            new &= ~_REMOTE_IRR
        self._entries[line] = new
        if new & _LEVEL:
            # What is requested is what the line says, whenever this was edge-triggered before.
            self._requested = self._requested & ~(1 << line) | self._lines & 1 << line
        self._serve(line)
