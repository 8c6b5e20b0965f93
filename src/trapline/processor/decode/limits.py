"""What the decoder cannot give: instructions beyond 15 bytes, and opcodes that are undefined before
their last byte is there."""

from __future__ import annotations

import iced_x86
from iced_x86 import DecoderOptions

LONGEST = 15
"""SDM 2A, 2.3.11: bytes in an instruction, prefixes and all."""

_SEGMENTS, _SIZES, _REPEATS = bytes.fromhex("262e363e6465"), b"\x66\x67\xf0", b"\xf2\xf3"
_PREFIXES = _SEGMENTS + _SIZES + _REPEATS
# SDM 2A, opcode maps: what 64-bit mode has no more, and what never was, without a ModRM byte.
_GONE = bytes.fromhex("06070e16171e1f272f373f6061ced6")
_RESERVED = bytes.fromhex("040a0c2425262736393b3c3d3e3f7a7ba6a7")


def is_undefined(code: bytes, bitness: int) -> bool:
    """Whether these bytes, which the decoder wants more after, are an undefined opcode already:
    no processor fetches what follows."""
    opcode = code.lstrip(_PREFIXES)
    if bitness == 64 and opcode and opcode[0] & 0xF0 == 0x40:
        opcode = opcode[1:]
    if len(opcode) in (1, 2) and _ends_at_opcode(opcode, bitness):
        return len(opcode) == _opcode_size(opcode)
    if len(opcode) != 2:
        return False
    # x87 with a register is two bytes.
    padded = iced_x86.Decoder(bitness, opcode + bytes(1), DecoderOptions.NONE)
    return opcode[0] & 0xF8 == 0xD8 and opcode[1] >= 0xC0 and not padded.decode().code


def is_too_long(code: bytes, bitness: int) -> bool:
    """Whether the instruction that begins with these bytes, 15 at least, goes on beyond them: #GP,
    whatever it is.  Of an undefined opcode the ModRM byte counts, and what that asks for."""
    start = _skip_prefixes(code, bitness)
    opcode = code[start:LONGEST]
    if len(opcode) < _opcode_size(opcode):
        return True
    if _ends_at_opcode(opcode, bitness):
        return False
    kept = _telling(code[:start], bitness)
    short = kept + opcode + bytes(LONGEST)
    # What makes an instruction undefined without changing its length, as LOCK does, is let pass.
    item = iced_x86.Decoder(bitness, short, DecoderOptions.NO_INVALID_CHECK).decode()
    # All of the map 0F 3A ends with a byte more (SDM 2D, A.3); iced-x86 stops before it.
    unread = 1 if not item.code and opcode[:2] == b"\x0f\x3a" else 0
    return start - len(kept) + item.len + unread > LONGEST


def _skip_prefixes(code: bytes, bitness: int) -> int:
    """How many bytes of prefixes there are, REX among them, wherever it stands."""
    position = 0
    while position < min(len(code), LONGEST):
        one = code[position]
        if one not in _PREFIXES and not (bitness == 64 and one & 0xF0 == 0x40):
            break
        position += 1
    return position


def _telling(prefixes: bytes, bitness: int) -> bytes:
    """Those that say what the opcode is and how long: each once, the last of F2 and F3, and REX
    where it counts.  None is lost that changes a length."""
    repeats = [one for one in prefixes if one in _REPEATS]
    kept = bytes(one for one in b"\x66\x67" if one in prefixes) + bytes(repeats[-1:])
    is_rex = bitness == 64 and prefixes and prefixes[-1] & 0xF0 == 0x40
    return kept + prefixes[-1:] if is_rex else kept


def _opcode_size(opcode: bytes) -> int:
    """Of an opcode with its escapes; for none at all, and for one cut off, what it has at least."""
    if opcode[:1] != b"\x0f":
        return 1
    return 3 if opcode[1:2] in (b"\x38", b"\x3a") else 2


def _ends_at_opcode(opcode: bytes, bitness: int) -> bool:
    """Whether the opcode is one of the undefined that have no ModRM byte."""
    if opcode[:1] == b"\x0f":
        return len(opcode) > 1 and opcode[1] in _RESERVED
    return bitness == 64 and opcode[:1] in _GONE
