"""A 16550A serial port that sends at once and never receives, but in loopback.

National Semiconductor, "PC16550D".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_DLAB = 0x80
_RECEIVED, _SEND_EMPTY, _LINE_STATUS = 1, 2, 4  # interrupt enable
_DATA_READY, _OVERRUN, _EMPTY = 0x01, 0x02, 0x60  # line status
_LOOPBACK = 0x10
_NO_INTERRUPT, _SEND_INTERRUPT, _RECEIVED_INTERRUPT, _LINE_INTERRUPT = 1, 2, 4, 6
_FIFO = 16


class Serial:
    """`send` is given each byte; `set_line` drives the interrupt line."""

    def __init__(self, send: Callable[[bytes], None], set_line: Callable[[bool], None]) -> None:
        self._send = send
        self._set_line = set_line
        self._enable = self._fifo = self._line = self._modem = self._scratch = 0
        self._divisor = 12  # 9600 baud
        self._received: deque[int] = deque()
        self._overrun = False
        self._send_waits = False  # the transmitter-empty interrupt has not been seen

    def read(self, offset: int, size: int) -> int:
        match offset:
            case 0 | 1 if self._line & _DLAB:
                return self._divisor >> 8 * offset & 0xFF
            case 0:
                byte = self._received.popleft() if self._received else 0
                self._update()
                return byte
            case 1:
                return self._enable
            case 2:
                return self._identify()
            case 3:
                return self._line
            case 4:
                return self._modem
            case 5:
                return self._line_status()
            case 6:
                return self._modem_status()
        return self._scratch

    def write(self, offset: int, size: int, value: int) -> None:
        match offset:
            case 0 | 1 if self._line & _DLAB:
                self._divisor &= 0xFF00 if offset == 0 else 0x00FF
                self._divisor |= value << 8 * offset
            case 0:
                self._transmit(value)
            case 1:
                self._send_waits = bool(value & ~self._enable & _SEND_EMPTY) or self._send_waits
                self._enable = value & 0xF
                self._update()
            case 2:
                self._control_fifo(value)
            case 3:
                self._line = value
            case 4:
                self._modem = value & 0x1F
            case 7:
                self._scratch = value

    def _transmit(self, byte: int) -> None:
        if self._modem & _LOOPBACK:
            room = _FIFO if self._fifo & 1 else 1
            if len(self._received) >= room:
                self._overrun = True
            else:
                self._received.append(byte)
        else:
            self._send(bytes((byte,)))
        self._send_waits = True
        self._update()

    def _control_fifo(self, value: int) -> None:
        if value & 2:
            self._received.clear()
        self._fifo = value & 0xC9
        self._update()

    def _identify(self) -> int:
        """Which interrupt is pending; reading acknowledges the transmitter's."""
        fifo = 0xC0 if self._fifo & 1 else 0
        cause = self._cause()
        if cause == _SEND_INTERRUPT:
            self._send_waits = False
            self._update()
        return fifo | cause

    def _cause(self) -> int:
        """The one of highest priority (PC16550D, "Interrupt Identification Register")."""
        if self._overrun and self._enable & _LINE_STATUS:
            return _LINE_INTERRUPT
        if self._received and self._enable & _RECEIVED:
            return _RECEIVED_INTERRUPT
        if self._send_waits and self._enable & _SEND_EMPTY:
            return _SEND_INTERRUPT
        return _NO_INTERRUPT

    def _update(self) -> None:
        self._set_line(self._cause() != _NO_INTERRUPT)

    def _line_status(self) -> int:
        status = _EMPTY | (_DATA_READY if self._received else 0)
        if self._overrun:
            status |= _OVERRUN
            self._overrun = False
            self._update()
        return status

    def _modem_status(self) -> int:
        if not self._modem & _LOOPBACK:
            return 0xB0  # DCD, DSR, CTS: somebody listens
        dtr, rts, outputs = self._modem & 1, self._modem >> 1 & 1, self._modem >> 2 & 3
        return rts << 4 | dtr << 5 | outputs << 6
