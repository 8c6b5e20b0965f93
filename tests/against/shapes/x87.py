"""Room on the register stack for what is pushed."""

from __future__ import annotations

from tests.against.draft import Draft
from tests.against.shapes.registry import finishes


@finishes(
    "FLD", "FLD1", "FLDL2E", "FLDL2T", "FLDLG2", "FLDLN2", "FLDPI", "FLDZ", "FILD", "FBLD", "FPTAN",
    "FXTRACT", "FSINCOS",
)  # fmt: skip
def _room(draft: Draft) -> None:
    """Mostly the next register is free and all others are in use: no stack fault."""
    if draft.source.random() < 0.3:
        return
    top = draft.float.fsw >> 11 & 7
    draft.float.ftw = 0xFF & ~(1 << (top - 1 & 7))
