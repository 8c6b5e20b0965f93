"""A little of ACPI's machine language: names, packages, and the encoding of their lengths.

ACPI Specification, "ACPI Machine Language (AML) Specification".
"""

from __future__ import annotations

_NAME, _PACKAGE, _BYTE, _ZERO, _SCOPE = 0x08, 0x12, 0x0A, 0x00, 0x10
_EXTENSION, _DEVICE, _DWORD = 0x5B, 0x82, 0x0C


def length(size: int) -> bytes:
    """PkgLength, which counts itself: six bits in one byte, or four and whole bytes."""
    if size + 1 < 64:
        return bytes((size + 1,))
    following = 1 if size + 2 < 1 << 12 else 2
    size += 1 + following
    return bytes((following << 6 | size & 15,)) + (size >> 4).to_bytes(following, "little")


def number(word: int) -> bytes:
    if not word:
        return bytes((_ZERO,))
    if word < 1 << 8:
        return bytes((_BYTE, word))
    return bytes((_DWORD,)) + word.to_bytes(4, "little")


def name(path: str, value: bytes) -> bytes:
    return bytes((_NAME,)) + path.encode() + value


def package(*elements: bytes) -> bytes:
    body = bytes((len(elements),)) + b"".join(elements)
    return bytes((_PACKAGE,)) + length(len(body)) + body


def scope(path: str, *terms: bytes) -> bytes:
    body = path.encode() + b"".join(terms)
    return bytes((_SCOPE,)) + length(len(body)) + body


def device(path: str, *terms: bytes) -> bytes:
    body = path.encode() + b"".join(terms)
    return bytes((_EXTENSION, _DEVICE)) + length(len(body)) + body


def hardware_id(text: str) -> bytes:
    """EISAID("PNP0501"): three letters of five bits, four hexadecimal digits."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | ord(letter) - 0x40
    swapped = (letters << 16 | int(text[3:], 16)).to_bytes(4, "big")
    return bytes((_DWORD,)) + swapped


def resources(*descriptors: bytes) -> bytes:
    """A buffer of resource descriptors, with its end tag."""
    data = b"".join(descriptors) + b"\x79\x00"
    body = number(len(data)) + data
    return b"\x11" + length(len(body)) + body


def ports(first: int, size: int) -> bytes:
    """Fixed I/O ports, decoded in 16 bits ("I/O Port Descriptor")."""
    return b"\x47\x01" + first.to_bytes(2, "little") * 2 + bytes((1, size))


def interrupt(line: int) -> bytes:
    """An edge-triggered line of the 8259 ("IRQ Descriptor")."""
    return b"\x22" + (1 << line).to_bytes(2, "little")
