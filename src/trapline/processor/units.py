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
def unit_of(form: FormFacts) -> str:
    """ "" (none), "mmx", "sse", "fxsave", "xsave", or what else the description declares.

    Vector operands tell; MMX and XMM ones together (CVTPI2PS) need what either needs.
    """
    kinds = {operand.kind for operand in form.operands}
    if "xmm" in kinds:
        return "sse"
    if "mmx" in kinds:
        return "mmx"
    return INSTRUCTIONS[form.name].unit


def require(state: State, unit: str) -> None:
    """Raise #UD or #NM unless instructions of the unit may be executed.

    SDM 2A, tables "Exception Conditions" of MMX and SSE instructions; FXSAVE; XSAVE.
    """
    if unit == "fxsave":
        if state.cr0 & (CR0_EM | CR0_TS):
            raise Fault(Vector.NM)
        return
    is_off = bool(state.cr0 & CR0_EM)
    if unit == "sse":
        is_off = is_off or not state.cr4 & CR4_OSFXSR
    elif unit == "xsave":
        is_off = not state.cr4 & CR4_OSXSAVE
    if is_off:
        raise Fault(Vector.UD)
    if state.cr0 & CR0_TS:
        raise Fault(Vector.NM)
