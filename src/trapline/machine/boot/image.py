"""What the loaders share: what may be wrong with an image, and what one leaves to the vCPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from trapline.machine import layout
from trapline.machine.memory import Memory


class BadImage(Exception):
    """One sentence: why this image cannot be started."""


class Mode(Enum):
    """The processor's mode at the first instruction."""

    REAL = 16
    PROTECTED = 32
    LONG = 64


@dataclass(frozen=True, slots=True)
class Part:
    """What of an image's file lies where; `virtual` is the address it was linked for."""

    offset: int
    virtual: int
    physical: int
    file_size: int
    size: int
    is_executable: bool = True


@dataclass(frozen=True, slots=True)
class Start:
    """Where the vCPU begins; `rax` and `rbx` are what the boot protocol says."""

    mode: Mode
    entry: int
    rax: int = 0
    rbx: int = 0
    parts: Sequence[Part] = ()


@dataclass(frozen=True, slots=True)
class Module:
    """A file for the guest, and the string that names it there (as QEMU's -initrd has them)."""

    data: bytes
    string: str


def place(memory: Memory, guest_physical: int, data: bytes, size: int) -> None:
    """Put one part of an image into memory, `size` bytes with zeros at its end."""
    end = guest_physical + size
    if not memory.has(guest_physical, size):
        raise BadImage(
            f"the image wants {guest_physical:#x} to {end:#x}, which is not memory of a machine"
            f" with {memory.size // layout.MIB} MiB"
        )
    if guest_physical < layout.FIRMWARE_USED_END and end > layout.FIRMWARE and size:
        raise BadImage(
            f"the image wants {guest_physical:#x} to {end:#x}, which the firmware occupies"
        )
    memory.write(guest_physical, data)
