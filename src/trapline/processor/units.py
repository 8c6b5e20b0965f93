"""Which instructions need x87, MMX or SSE switched on, and what is raised when it is not."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from trapline.arch.exception import Vector
from trapline.arch.registers import CR0_EM, CR0_TS, CR4_OSFXSR, CR4_OSXSAVE
from trapline.processor.fault import Fault
from trapline.processor.language import INSTRUCTIONS, FormFacts

if TYPE_CHECKING:
    from trapline.processor.state import State


@cache
def unit(form: FormFacts) -> str:
    """ "", "mmx", "sse", "both" (CVTPI2PS ...), "fxsave" or "xsave"."""
    declared = INSTRUCTIONS[form.name].unit
    kinds = {operand.kind for operand in form.operands}
    if "mmx" in kinds:
        return "both" if "xmm" in kinds else "mmx"
    if not declared and "xmm" in kinds:  # MOVSD and CMPSD, which share a string's name
        return "sse"
    return declared


def require(state: State, unit: str) -> None:
    """SDM 3A, table "Action Taken for Combinations of OSFXSR, EM, TS": #UD before #NM."""
    if not unit:
        return
    if unit == "xsave":
        missing = not state.cr4 & CR4_OSXSAVE
    elif unit == "fxsave":
        missing = False
        if state.cr0 & CR0_EM:  # SDM 2A, FXSAVE
            raise Fault(Vector.NM)
    else:
        missing = bool(state.cr0 & CR0_EM)
        if unit != "mmx":
            missing = missing or not state.cr4 & CR4_OSFXSR
    if missing:
        raise Fault(Vector.UD)
    if state.cr0 & CR0_TS:
        raise Fault(Vector.NM)
