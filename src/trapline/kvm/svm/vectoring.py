"""An exit in the middle of delivering an event: that event is to be delivered again.

KVM's svm_complete_interrupts().
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch import svm
from trapline.arch.exception import Vector
from trapline.arch.svm import EventType
from trapline.processor import SvmExit

if TYPE_CHECKING:
    from trapline.kvm.svm.backend import SvmBackend
    from trapline.kvm.vcpu import SoftwareVcpu

_BY_INSTRUCTION: Final = (Vector.DB, Vector.BP, Vector.OF)


def requeue(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit, was_injected: bool) -> None:
    """Put the event of EXITINTINFO back into its queue.

    Software's own INT n, INT3 and INTO are not: RIP is the instruction, which runs again.  Nor
    is INT1, which is the only #DB that the processor delivers without our injecting it.
    """
    information = exit.int_info
    vector, kind = information & 0xFF, information >> 8 & 7
    if kind == EventType.NMI:
        vcpu.events.nmi_injected = vcpu.events.waiting = True
        # The NMI was not delivered, so it does not block the next one.
        backend.state.nmi_blocked = 0
    elif kind == EventType.EXCEPTION:
        if vector in _BY_INSTRUCTION and not was_injected:
            return
        has_error_code = information & svm.EVENT_ERROR_CODE
        vcpu.events.requeue(vector, information >> 32 if has_error_code else None)
    elif kind == EventType.INTERRUPT:
        vcpu.events.queue_interrupt(vector)
    elif was_injected:
        vcpu.events.queue_interrupt(vector, True)
