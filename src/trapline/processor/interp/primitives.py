"""The primitives of the language on Python integers, by name.

Vector and floating-point families add theirs from their own files in this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapline.processor.language import Primitive
    from trapline.processor.state import State

Implementation = Callable[["State", "Primitive", Sequence[int]], Sequence[int]]

PRIMITIVES: dict[str, Implementation] = {}


def primitive(name: str) -> Callable[[Implementation], Implementation]:
    """Register what a primitive does: (state, effect, argument words) -> result words.
    A primitive may raise Fault; it writes no state but the sticky flags of its unit."""

    def register(implementation: Implementation) -> Implementation:
        PRIMITIVES[name] = implementation
        return implementation

    return register


@primitive("fence")
def _fence(state: State, effect: Primitive, args: Sequence[int]) -> Sequence[int]:
    """Python's own accesses are in order already."""
    return ()
