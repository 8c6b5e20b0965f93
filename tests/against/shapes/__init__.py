"""What single instructions need of the state around them, so that cases are not all alike.

Nothing here says what an instruction does.
"""

from __future__ import annotations

from iced_x86 import OpCodeOperandKind

from tests.against.draft import Draft
from tests.against.shapes import arithmetic, images, stack, strings, vectors, x87
from tests.against.shapes.registry import FINISH, PREPARE

__all__ = ["arithmetic", "finish", "images", "prepare", "stack", "strings", "vectors", "x87"]

_STRINGS = frozenset((OpCodeOperandKind.SEG_RSI, OpCodeOperandKind.ES_RDI))


def prepare(draft: Draft) -> None:
    """Fix the registers an instruction uses without naming them."""
    if _STRINGS.intersection(draft.kinds):
        strings.place_runs(draft)
    elif draft.described.is_stack_instruction:
        stack.place_stack(draft)
    shape = PREPARE.get(draft.form.mnemonic)
    if shape is not None:
        shape(draft)


def finish(draft: Draft) -> None:
    """Adjust values once the operands are known."""
    shape = FINISH.get(draft.form.mnemonic)
    if shape is not None:
        shape(draft)
