"""The primitives of the language as LLVM IR, by name.

Vector and floating-point families add theirs from their own files in this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapline.processor.jit.lowering import Lowering
    from trapline.processor.jit.text import Ssa
    from trapline.processor.language import Primitive

Implementation = Callable[["Lowering", "Primitive", Sequence["Ssa"]], Sequence["Ssa"]]

PRIMITIVES: dict[str, Implementation] = {}


def primitive(name: str) -> Callable[[Implementation], Implementation]:
    """Register how a primitive is lowered: (lowering, effect, argument values) -> results.
    A primitive that can fault must do so before the handler commits (use lowering.fault)."""

    def register(implementation: Implementation) -> Implementation:
        PRIMITIVES[name] = implementation
        return implementation

    return register


@primitive("fence")
def _fence(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    lowering.f.line("fence seq_cst")
    return ()
