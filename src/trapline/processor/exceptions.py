"""What becomes of an exception or interrupt: interception, CR2 and DR6, #DF and shutdown.

How it is then vectored through the IDT is in `delivery`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.exception import Combination, combine
from trapline.arch.registers import RFLAGS_RF
from trapline.arch.vmx import EVENT_ERROR_CODE, EVENT_VALID
from trapline.processor import debug, delivery
from trapline.processor.fault import Fault
from trapline.processor.guest import (
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    NMI,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
)

if TYPE_CHECKING:
    from trapline.processor.core import Core

DB, NMI_VECTOR, DF, PF = 1, 2, 8, 14
SHUTDOWN = 2  # state.activity
_CODE_BREAKPOINTS = 0xF


def deliver_fault(core: Core, fault: Fault) -> None:
    """A fault that an instruction raised: state.rip is that instruction, nothing of it done."""
    core.memory.notes.drop()
    vector, payload = fault.vector, fault.payload
    if vector != DB or payload & ~_CODE_BREAKPOINTS:
        # SDM 3B, "Instruction-Breakpoint Exception Condition": any other fault pushes RF as 1.
        core.state.system_flags |= RFLAGS_RF
    if vector == PF:
        payload = fault.cr2 or 0
    deliver(core, vector, fault.error_code, payload=payload, is_fault=True)


def deliver(
    core: Core,
    vector: int,
    error_code: int | None = None,
    *,
    kind: int = HARDWARE_EXCEPTION,
    payload: int = 0,
    length: int = 0,
    is_fault: bool = False,
) -> None:
    """An event happens: the hypervisor may take it, else the guest's handler comes next.

    state.rip is what is saved, for software's events the instruction, of `length` bytes.
    `payload`: #DB the causes, positive polarity; #PF the linear address.
    """
    guest = core.guest
    if guest is not None and kind not in (EXTERNAL_INTERRUPT, NMI, SOFTWARE_INTERRUPT):
        guest.intercept_exception(vector, error_code, payload, kind, length)
    if is_fault:
        # Traps that MOV SS held back.  An exit above leaves them pending (SDM 3C, "Saving
        # Non-Register State"); that the fault's delivery loses them is stated nowhere.
        core.state.pending_debug = 0
    _note_cause(core, vector, payload, kind)
    inject(core, vector, error_code, kind=kind, length=length)


def inject(
    core: Core,
    vector: int,
    error_code: int | None = None,
    *,
    kind: int = HARDWARE_EXCEPTION,
    length: int = 0,
) -> None:
    """Vector an event through the IDT: not intercepted, CR2 and DR6 as they are.

    What VM entry does with an event (SDM 3C, "Event Injection"), and the end of `deliver`.
    """
    guest, state = core.guest, core.state
    core.memory.notes.drop()
    while True:
        if guest is not None:
            guest.vectoring_info = EVENT_VALID | kind << 8 | vector
            guest.vectoring_length = length
            if error_code is not None:
                guest.vectoring_info |= EVENT_ERROR_CODE
                guest.vectoring_error_code = error_code
        try:
            delivery.enter(core, vector, error_code, kind, length)
        except Fault as second:
            following = _after(core, vector, kind, second)
            if following is None:
                return
            vector, error_code = following
            kind = HARDWARE_EXCEPTION
        else:
            break
    if guest is not None:
        guest.vectoring_info = 0
    if kind == NMI:
        state.nmi_blocked = 1
    state.activity = state.interrupt_shadow = 0


def software_interrupt(core: Core, vector: int, kind: int, length: int) -> int:
    """INT n, INT3, INTO, INT1 have executed; the RIP of the handler."""
    if kind == SOFTWARE_INTERRUPT:
        inject(core, vector, kind=kind, length=length)
    else:
        deliver(core, vector, kind=kind, length=length)
    return core.state.rip


def _note_cause(core: Core, vector: int, payload: int, kind: int) -> None:
    if vector == PF and kind == HARDWARE_EXCEPTION:
        core.state.cr2 = payload
    elif vector == DB and kind in (HARDWARE_EXCEPTION, PRIVILEGED_SOFTWARE_EXCEPTION):
        debug.record(core, payload, kind)


def _after(core: Core, vector: int, kind: int, second: Fault) -> tuple[int, int | None] | None:
    """The event that follows when delivering `vector` raised a fault; None: shutdown."""
    guest = core.guest
    payload = second.cr2 or 0 if second.vector == PF else second.payload
    if guest is not None:
        guest.intercept_exception(second.vector, second.error_code, payload, HARDWARE_EXCEPTION, 0)
    _note_cause(core, second.vector, payload, HARDWARE_EXCEPTION)
    # Interrupts and software's events are benign, whatever their vector.
    first = vector if kind == HARDWARE_EXCEPTION else -1
    match combine(first, second.vector):
        case Combination.SERIAL:
            core.state.system_flags |= RFLAGS_RF
            core.state.pending_debug = 0  # as in `deliver`: INT3 behind MOV SS, say, has faulted
            return second.vector, second.error_code
        case Combination.DOUBLE_FAULT:
            if guest is not None:
                guest.intercept_exception(DF, 0, 0, HARDWARE_EXCEPTION, 0)
            return DF, 0
    if guest is not None:
        guest.intercept_triple_fault()
    core.state.activity = SHUTDOWN
    return None


__all__ = [
    "SOFTWARE_EXCEPTION",
    "deliver",
    "deliver_fault",
    "inject",
    "software_interrupt",
]
