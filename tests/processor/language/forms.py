"""Every form the decoder can make of an instruction: found by decoding, not by a list."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from trapline.processor.decode import decode
from trapline.processor.language import FormFacts

_PREFIXES = ("", "66", "f2", "f3", "f0", "67", "48", "66 48", "f3 48", "f2 48", "66 f2")
_MAPS = ("", "0f", "0f 38", "0f 3a")
_MEMORY = tuple(range(0x01, 0x40, 8))  # [rcx], or [bx+di], with each opcode extension
_REGISTERS = tuple(range(0xC1, 0x100, 8))
_PADDING = bytes(12)


@cache
def every_form(bitness: int) -> dict[FormFacts, bytes]:
    """The forms of one kind of code, each with bytes that have it."""
    found: dict[FormFacts, bytes] = {}
    for code in _candidates(bitness):
        decoded = decode(code, 0x1000, bitness, 64 if bitness == 64 else 32)
        if decoded is not None and decoded.name:
            found.setdefault(decoded.form, decoded.code)
    return found


def _candidates(bitness: int) -> Iterator[bytes]:
    for prefix in _PREFIXES:
        if "48" in prefix and bitness != 64:
            continue
        for opcode_map in _MAPS:
            start = bytes.fromhex(prefix + opcode_map)
            # Only these have opcodes that a whole ModRM byte selects.
            every = prefix in ("", "f3") and opcode_map in ("", "0f")
            modrms = (*_MEMORY, *(range(0xC0, 0x100) if every else _REGISTERS))
            for opcode in range(256):
                for modrm in modrms:
                    yield start + bytes((opcode, modrm)) + _PADDING
