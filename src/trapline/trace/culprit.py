"""Steps back from the address a bus-lock trap reports to the instruction that took the lock.

For processors that say no more than that address, as real ones do: the instruction ends there,
locks memory, and its operand, with the registers as they are now, says which.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from trapline.trace.operand import Disassemble, evaluate
from trapline.trace.region import GuestThread

CACHE_LINE = 64
LONGEST = 15
SHORTEST = 2  # xchg [rax], eax
BAD = "(bad)"
# REX in front of LOCK, or LOCK twice, means nothing: it is the end of the instruction before.
USELESS = [bytes([first, 0xF0]) for first in (*range(0x40, 0x50), 0xF0)]
SIZES = {"b": 1, "w": 2, "d": 4, "q": 8, "x": 16}
_SIZE = re.compile(r"\b(byte|word|dword|qword|xmmword) ptr")
_LOCKING = re.compile(r"(lock .*|xchg .*)\[", re.IGNORECASE)
_REGISTER = re.compile(r",\s*([a-z0-9]+)$|\s([a-z0-9]+)\s*,", re.IGNORECASE)


class GuessedCause(StrEnum):
    """The processor's causes, as far as they can be told from an address."""

    SPLIT = "split"
    UNCACHED = "uncached"


class Culprit(NamedTuple):
    """A bus lock put together again from its trap."""

    rip: int
    next_rip: int
    linear: int
    size: int
    cpl: int
    cause: GuessedCause
    physical: int | None = None


def find_culprit(next_rip: int, thread: GuestThread, disassemble: Disassemble) -> Culprit | None:
    """The locked instruction that ends at `next_rip`, or None if there is none.

    Where several fit, the one whose operand crosses a line, and then the longest, with its
    prefixes: what a processor executes begins with them.
    """
    before = thread.read(next_rip - LONGEST, LONGEST)
    registers = thread.registers()
    found = []
    for length in range(min(LONGEST, len(before)), SHORTEST - 1, -1):
        code, rip = before[-length:], next_rip - length
        text = disassemble(code, rip, 64)
        is_whole = disassemble(code[:-1], rip, 64) == BAD and code[:2] not in USELESS
        if not is_whole or _LOCKING.match(text) is None:
            continue
        linear, size = evaluate(text, registers, next_rip), operand_size(text)
        if linear is None or size is None:
            continue
        is_split = linear % CACHE_LINE + size > CACHE_LINE
        cause = GuessedCause.SPLIT if is_split else GuessedCause.UNCACHED
        found.append(Culprit(rip, next_rip, linear, size, 3, cause))
    return next((c for c in found if c.cause is GuessedCause.SPLIT), found[0] if found else None)


def operand_size(text: str) -> int | None:
    """The size of the memory operand, said or as large as the register beside it."""
    if "cmpxchg8b" in text or "cmpxchg16b" in text:
        return 8 if "cmpxchg8b" in text else 16
    said = _SIZE.search(text.lower())
    if said is not None:
        return SIZES[said.group(1)[0]]
    beside = _REGISTER.search(text.lower())
    return _register_size(next(filter(None, beside.groups()))) if beside is not None else None


def _register_size(name: str) -> int:
    if re.fullmatch(r"[abcd][lh]|(si|di|bp|sp|r\d+)[bl]|[sd]il|[bs]pl", name):
        return 1
    if re.fullmatch(r"[abcd]x|[sd]i|[bs]p|r\d+w", name):
        return 2
    return 4 if name.startswith("e") or name.endswith("d") else 8
