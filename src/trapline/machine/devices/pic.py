"""Two 8259A interrupt controllers, the second on the first's line 2, as in every PC.

Intel, "8259A Programmable Interrupt Controller".  Who takes the vectors is not known here.
"""

from __future__ import annotations

from collections.abc import Callable

_COMMAND, _DATA = 0, 1
_CASCADE = 2
_ICW1, _OCW3 = 0x10, 0x08
_ICW4_NEEDED = 1
_AUTO_EOI, _SPECIAL_FULLY_NESTED = 2, 0x10
_SPURIOUS = 7


class Pic:
    """One controller of eight lines; `changed` hears of all that may change what it asks for."""

    def __init__(self, is_master: bool, changed: Callable[[], None]) -> None:
        self._is_master = is_master
        self._changed = changed
        self.level_lines = 0  # ELCR
        self._lines = 0
        self.start(0)

    def start(self, vector: int, mask: int = 0) -> None:
        """The state after initialization."""
        self.requested = self.in_service = 0
        self.mask = mask
        self.vector = vector
        self._lowest = 7  # the line of lowest priority
        self._step = 0  # the next ICW that the data port takes, 0 for none
        self._needs_icw4 = self._auto_eoi = self._nested = False
        self._rotate_on_auto_eoi = self._special_mask = False
        self._reads_in_service = self._polls = False

    def set_line(self, line: int, is_high: bool) -> None:
        bit = 1 << line
        self._changed()
        if is_high:
            if self.level_lines & bit or not self._lines & bit:
                self.requested |= bit
            self._lines |= bit
        else:
            if self.level_lines & bit:
                self.requested &= ~bit
            self._lines &= ~bit

    def _highest(self, lines: int) -> int:
        """The line of highest priority in a set, as a distance from the top; 8 for none."""
        for distance in range(8):
            if lines >> (self._lowest + 1 + distance & 7) & 1:
                return distance
        return 8

    def waiting(self) -> int | None:
        """The line that asks for service, if one may."""
        asking = self._highest(self.requested & ~self.mask)
        if asking == 8:
            return None
        busy = self.in_service
        if self._special_mask:
            busy &= ~self.mask
        if self._nested and self._is_master:
            busy &= ~(1 << _CASCADE)
        if asking >= self._highest(busy):
            return None
        return self._lowest + 1 + asking & 7

    def acknowledge(self, line: int) -> None:
        bit = 1 << line
        self._changed()
        if self._auto_eoi:
            if self._rotate_on_auto_eoi:
                self._lowest = line
        else:
            self.in_service |= bit
        if not self.level_lines & bit:
            self.requested &= ~bit

    def read(self, offset: int, size: int) -> int:
        if self._polls:
            self._polls = False
            line = self.waiting()
            if line is None:
                return 0
            self.acknowledge(line)
            return 0x80 | line
        if offset == _DATA:
            return self.mask
        return self.in_service if self._reads_in_service else self.requested

    def write(self, offset: int, size: int, value: int) -> None:
        self._changed()
        if offset == _DATA:
            self._write_data(value)
        elif value & _ICW1:
            self.start(self.vector)
            self._needs_icw4 = bool(value & _ICW4_NEEDED)
            self._step = 2
        elif value & _OCW3:
            if value & 0x40:
                self._special_mask = bool(value & 0x20)
            if value & 2:
                self._reads_in_service = bool(value & 1)
            self._polls = bool(value & 4)
        else:
            self._end_of_interrupt(value >> 5, value & 7)

    def _write_data(self, value: int) -> None:
        match self._step:
            case 0:
                self.mask = value
            case 2:
                self.vector = value & 0xF8
                self._step = 3
            case 3:
                self._step = 4 if self._needs_icw4 else 0
            case 4:
                self._auto_eoi = bool(value & _AUTO_EOI)
                self._nested = bool(value & _SPECIAL_FULLY_NESTED)
                self._step = 0

    def _end_of_interrupt(self, command: int, line: int) -> None:
        match command:
            case 0 | 4:
                self._rotate_on_auto_eoi = command == 4
            case 1 | 5:
                distance = self._highest(self.in_service)
                if distance < 8:
                    line = self._lowest + 1 + distance & 7
                    self.in_service &= ~(1 << line)
                    if command == 5:
                        self._lowest = line
            case 3 | 7:
                self.in_service &= ~(1 << line)
                if command == 7:
                    self._lowest = line
            case 6:
                self._lowest = line


class EdgeOrLevel:
    """A controller's ELCR, at a port of its own."""

    def __init__(self, pic: Pic, may_be_level: int) -> None:
        self._pic, self._may_be_level = pic, may_be_level

    def read(self, offset: int, size: int) -> int:
        return self._pic.level_lines

    def write(self, offset: int, size: int, value: int) -> None:
        self._pic.level_lines = value & self._may_be_level


class PicPair:
    """Sixteen lines; starts as a PC's firmware leaves it, with only the timer let through."""

    def __init__(self) -> None:
        self._is_stale = True
        self._asks = False
        self.master, self.slave = Pic(True, self._changed), Pic(False, self._changed)
        self.master.start(0x08, mask=0xFA)
        self.slave.start(0x70, mask=0xFF)
        self.master_elcr = EdgeOrLevel(self.master, 0xF8)
        self.slave_elcr = EdgeOrLevel(self.slave, 0xDE)

    def set_line(self, line: int, is_high: bool) -> None:
        if line < 8:
            self.master.set_line(line, is_high)
        elif line < 16:
            self.slave.set_line(line - 8, is_high)
            self._cascade()

    def _changed(self) -> None:
        self._is_stale = True

    def _cascade(self) -> None:
        self.master.set_line(_CASCADE, False)
        if self.slave.waiting() is not None:
            self.master.set_line(_CASCADE, True)
        else:
            self.master.requested &= ~(1 << _CASCADE)

    @property
    def has_interrupt(self) -> bool:
        """INTR."""
        if self._is_stale:
            self._cascade()
            self._asks = self.master.waiting() is not None
            self._is_stale = False
        return self._asks

    def acknowledge(self) -> int:
        """The interrupt-acknowledge cycle: the vector."""
        line = self.master.waiting()
        if line is None:
            return self.master.vector | _SPURIOUS
        self.master.acknowledge(line)
        if line != _CASCADE:
            return self.master.vector | line
        line = self.slave.waiting()
        if line is None:
            return self.slave.vector | _SPURIOUS
        self.slave.acknowledge(line)
        self._cascade()
        return self.slave.vector | line

    def is_masked(self, line: int) -> bool:
        """Whether the masks keep a line from ever interrupting."""
        if line < 8:
            return bool(self.master.mask >> line & 1)
        return bool(self.master.mask >> _CASCADE & 1 or self.slave.mask >> line - 8 & 1)
