"""Flat images, and real mode without a BIOS: raw code starts as a boot sector does.

Every vector leads to a stub by which a call for a service, or an exception nobody handles, is
recognized; the timer's stub acknowledges its interrupt and returns.
"""

from __future__ import annotations

import struct

from trapline.machine import layout
from trapline.machine.boot.image import BadImage, Mode, Part, Start, place
from trapline.machine.memory import Memory

_HLT = b"\xf4"
_VECTORS = 256
_TIMER_VECTOR = 8
# push ax; mov al, 20h; out 20h, al; pop ax; iret
_TIMER = bytes.fromhex("50 b0 20 e6 20 58 cf")
_REAL_MODE_LIMIT = 0x100000


def load(memory: Memory, data: bytes, address: int) -> Start:
    """The image to `address`."""
    if not data:
        raise BadImage("the image is empty")
    if address >= _REAL_MODE_LIMIT:
        raise BadImage(f"a flat image starts in real mode, which cannot reach {address:#x}")
    if address < 4 * _VECTORS:
        raise BadImage(f"a flat image cannot lie at {address:#x}, over the interrupt vectors")
    place(memory, address, data, len(data))
    return Start(Mode.REAL, address, parts=(Part(0, address, address, len(data), len(data)),))


def write_vectors(memory: Memory) -> None:
    """The interrupt vector table, for whoever is in real mode or comes back to it."""
    memory.write(layout.VECTOR_STUBS, _HLT * _VECTORS)
    memory.write(layout.TIMER_STUB, _TIMER)
    stubs = [layout.VECTOR_STUBS + vector for vector in range(_VECTORS)]
    stubs[_TIMER_VECTOR] = layout.TIMER_STUB
    table = [(stub >> 4 & 0xF000) << 16 | stub & 0xFFFF for stub in stubs]
    memory.write(0, struct.pack(f"<{_VECTORS}I", *table))


def service_call(cs_base: int, rip: int) -> int | None:
    """The vector whose stub the vCPU has halted in, if it has."""
    vector = cs_base + rip - 1 - layout.VECTOR_STUBS
    return vector if cs_base == layout.VECTOR_STUBS and 0 <= vector < _VECTORS else None
