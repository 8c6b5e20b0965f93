"""A signal that an instruction of the program caused."""

from __future__ import annotations

from dataclasses import dataclass

SI_KERNEL = 0x80


@dataclass(frozen=True, slots=True)
class Trouble:
    """The signal, with what its handler may ask for."""

    signal: int
    code: int
    linear: int = 0  # si_addr
    vector: int = 0
    error: int = 0
    cr2: int = 0
