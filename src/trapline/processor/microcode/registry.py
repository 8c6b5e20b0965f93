"""The book of microcode functions: what the instruction language cannot say, by name."""

from __future__ import annotations

from collections.abc import Callable

# (core, instruction, *integers) -> the new RIP, or None for the next instruction.
Function = Callable[..., "int | None"]

MICROCODE: dict[str, Function] = {}


def microcode(name: str) -> Callable[[Function], Function]:
    """Register a function.  It is called with state.rip still at the instruction, and raises a
    fault before it changes anything."""

    def register(function: Function) -> Function:
        if name in MICROCODE:
            raise ValueError(f"microcode {name} is there twice")
        MICROCODE[name] = function
        return function

    return register


