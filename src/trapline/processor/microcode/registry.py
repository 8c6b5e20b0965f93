"""The book of microcode: name -> function of the core.

A function is called as function(core, instruction, *integers) while state.rip is the
instruction's own address; it returns the new RIP, or None for the next instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trapline.processor.fault import Fault

if TYPE_CHECKING:
    from trapline.processor.core import Core

Function = Callable[..., int | None]
MICROCODE: dict[str, Function] = {}

GP, UD = 13, 6
MASK_32, MASK_64 = (1 << 32) - 1, (1 << 64) - 1


def microcode(*names: str) -> Callable[[Function], Function]:
    """Register a function under its names."""

    def register(function: Function) -> Function:
        for name in names:
            if name in MICROCODE:
                raise ValueError(f"{name} is in microcode twice")
            MICROCODE[name] = function
        return function

    return register


def require_privilege(core: Core) -> None:
    """#GP(0) unless at CPL 0."""
    if core.state.cpl:
        raise Fault(GP, 0)


def undefined() -> Fault:
    """#UD, to be raised."""
    return Fault(UD)
