"""What a BIOS leaves in low memory for those that come after it: the BIOS data area.

Guests that know PCs look there for the end of conventional memory and for serial ports.
"""

from __future__ import annotations

from typing import Final

from trapline.machine import layout
from trapline.machine.memory import Memory

_COM1: Final = 0x400
_EXTENDED_AREA: Final = 0x40E  # as a segment
_EQUIPMENT: Final = 0x410
_MEMORY_SIZE: Final = 0x413  # in KiB
_MATH_COPROCESSOR, _ONE_SERIAL_PORT = 2, 1 << 9


def write_bios_data(memory: Memory) -> None:
    """The words for this board, and the extended area's size."""
    words = {
        _COM1: layout.SERIAL,
        _EXTENDED_AREA: layout.LOW_END >> 4,
        _EQUIPMENT: _MATH_COPROCESSOR | _ONE_SERIAL_PORT,
        _MEMORY_SIZE: layout.LOW_END // layout.KIB,
    }
    for address, word in words.items():
        memory.write(address, word.to_bytes(2, "little"))
    extended = layout.EXTENDED_BIOS_DATA_END - layout.LOW_END
    memory.write(layout.LOW_END, bytes((extended // layout.KIB,)))
