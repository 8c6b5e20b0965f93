"""An exit in the middle of delivering an event: that event is to be delivered again.

KVM's vmx_complete_interrupts().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch import vmx
from trapline.arch.vmx import EventType
from trapline.processor import VmExit

if TYPE_CHECKING:
    from trapline.kvm.vcpu import SoftwareVcpu
    from trapline.kvm.vmx.backend import VmxBackend


def requeue(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> None:
    """Put the event of the IDT-vectoring information back into its queue."""
    information = exit.vectoring_info
    vector, kind = information & vmx.EVENT_VECTOR, information >> vmx.EVENT_TYPE_SHIFT & 7
    if kind == EventType.NMI:
        vcpu.events.nmi_injected = vcpu.events.waiting = True
        # The NMI was not delivered, so it does not block the next one.
        backend.state.nmi_blocked = 0
    elif kind in (EventType.HARDWARE_EXCEPTION, EventType.SOFTWARE_EXCEPTION):
        if kind == EventType.SOFTWARE_EXCEPTION:
            backend.instruction_length = exit.instruction_length
        has_error_code = information & vmx.EVENT_ERROR_CODE
        vcpu.events.requeue(vector, exit.vectoring_error_code if has_error_code else None)
    elif kind in (EventType.SOFTWARE_INTERRUPT, EventType.EXTERNAL_INTERRUPT):
        is_soft = kind == EventType.SOFTWARE_INTERRUPT
        if is_soft:
            backend.instruction_length = exit.instruction_length
        vcpu.events.queue_interrupt(vector, is_soft)
