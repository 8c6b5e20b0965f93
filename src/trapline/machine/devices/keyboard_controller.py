"""The 8042 keyboard controller without a keyboard: self tests, the output port, and reset.

IBM PC/AT Technical Reference, "Keyboard Controller".
"""

from __future__ import annotations

from collections.abc import Callable

_DATA, _COMMAND = 0, 1
_FULL, _SYSTEM = 0x01, 0x04  # status
_A20_AND_NO_RESET = 0x03
_ANSWERS = {0xAA: 0x55, 0xAB: 0x00, 0xC0: 0x00, 0xD0: _A20_AND_NO_RESET}
_READ_MODE, _WRITE_MODE, _WRITE_OUTPUT, _PULSE = 0x20, 0x60, 0xD1, 0xF0


class KeyboardController:
    """Two ports here: data (0x60) and command or status (0x64)."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset
        self._mode = 0x45
        self._answer: int | None = None
        self._expects = 0
        self._last = 0

    def at(self, which: int) -> KeyboardPort:
        """The device to put at the data port (0) or the command port (1)."""
        return KeyboardPort(self, which)

    def read(self, which: int) -> int:
        if which == _COMMAND:
            return _SYSTEM | (_FULL if self._answer is not None else 0)
        if self._answer is not None:
            self._last, self._answer = self._answer, None
        return self._last

    def write(self, which: int, value: int) -> None:
        if which == _COMMAND:
            self._command(value)
            return
        expects, self._expects = self._expects, 0
        if expects == _WRITE_MODE:
            self._mode = value
        elif expects == _WRITE_OUTPUT and not value & 1:
            self._reset()

    def _command(self, command: int) -> None:
        self._expects = command if command in (_WRITE_MODE, _WRITE_OUTPUT) else 0
        if command == _READ_MODE:
            self._answer = self._mode
        elif command in _ANSWERS:
            self._answer = _ANSWERS[command]
        elif command & 0xF0 == _PULSE and not command & 1:
            self._reset()


class KeyboardPort:
    """One of the controller's two ports, which do not lie side by side."""

    def __init__(self, controller: KeyboardController, which: int) -> None:
        self._controller, self._which = controller, which

    def read(self, offset: int, size: int) -> int:
        return self._controller.read(self._which)

    def write(self, offset: int, size: int, value: int) -> None:
        self._controller.write(self._which, value)
