"""Where a case's code and data lie: the same linear addresses on the host and in the guest.

Every address fits into 31 bits except HIGH, so a displacement or a 32-bit address reaches them.
Around each run of regions there is nothing, so an access past an end faults.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

PAGE = 4096
LINE = 64


@dataclass(frozen=True)
class Region:
    """A run of pages that instructions under test may reach."""

    name: str
    linear: int
    size: int
    writable: bool
    executable: bool

    @property
    def end(self) -> int:
        return self.linear + self.size


CODE = Region("code", 0x6000_0000, PAGE, writable=False, executable=True)
DATA = Region("data", 0x6100_0000, 2 * PAGE, writable=True, executable=False)
READ_ONLY = Region("read-only", DATA.end, PAGE, writable=False, executable=False)
HIGH = Region("high", 0x2345_6789_A000, PAGE, writable=True, executable=False)
REGIONS = (CODE, DATA, READ_ONLY, HIGH)
TOTAL = sum(region.size for region in REGIONS)

# A user address no region reaches, and one that is not canonical.
UNMAPPED = 0x6200_0000
NON_CANONICAL = 0x8000_0000_0000

# With a 32-bit effective address FS reaches DATA and GS reaches HIGH.
FS_BASE = DATA.linear - 0x1_2340
GS_BASE = HIGH.linear - 0x7654_3210

USER_CS = 0x33
USER_CS_32 = 0x23
USER_SS = USER_DS = 0x2B  # DS and ES alike; FS and GS hold null selectors

# An instruction sits here unless its case says otherwise: branches reach both ways.
ENTRY = CODE.linear + 0x800

FILL = b"\xcc"  # INT3 all around the instruction, so the host always comes back


@cache
def background() -> bytes:
    """The content of all regions, in order, before a case writes its operands."""
    source = random.Random(0x5D6)
    return b"".join(
        FILL * region.size if region.executable else source.randbytes(region.size)
        for region in REGIONS
    )


def offset_of(linear: int) -> int | None:
    """Where a linear address lies in `background()`; None when it is in no region."""
    start = 0
    for region in REGIONS:
        if region.linear <= linear < region.end:
            return start + linear - region.linear
        start += region.size
    return None


def linear_of(offset: int) -> int:
    """The linear address of a byte of `background()`."""
    for region in REGIONS:
        if offset < region.size:
            return region.linear + offset
        offset -= region.size
    raise ValueError("offset lies past the last region")


def pieces(linear: int, content: bytes) -> list[tuple[int, bytes]]:
    """`content` at `linear` as (offset in the background, bytes); what is unmapped is dropped."""
    parts: list[tuple[int, bytes]] = []
    while content:
        taken = content[: PAGE - linear % PAGE]
        start = offset_of(linear)
        if start is not None:
            parts.append((start, taken))
        linear += len(taken)
        content = content[len(taken) :]
    return parts
