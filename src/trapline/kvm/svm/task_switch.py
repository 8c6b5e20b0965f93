"""Task switches: intercepted, for a nested page fault in the middle of one could not be undone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch import svm, vmx
from trapline.arch.exception import Vector
from trapline.arch.svm import EventType
from trapline.kvm.svm.emulation import information_of
from trapline.kvm.task_switch import Delivered, switch_task
from trapline.processor import SvmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.svm.backend import SvmBackend
    from trapline.kvm.vcpu import SoftwareVcpu

_BY_SOFTWARE: Final[dict[int, int]] = {
    Vector.BP: vmx.EventType.SOFTWARE_EXCEPTION,
    Vector.OF: vmx.EventType.SOFTWARE_EXCEPTION,
    Vector.DB: vmx.EventType.PRIVILEGED_SOFTWARE_EXCEPTION,
}


def handle_task_switch(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """task_switch_interception().  SVM has one type for all exceptions: INT3 and INTO always
    raise these, and a #DB that nobody has injected is INT1's."""
    event, information = None, exit.int_info
    if information:
        kind, vector = information >> 8 & 7, information & 0xFF
        if kind == EventType.EXCEPTION:
            is_injected = vector == Vector.DB and vcpu.events.exception.injected
            if not is_injected:
                kind = _BY_SOFTWARE.get(vector, kind)
        has_code = information & svm.EVENT_ERROR_CODE
        event = Delivered(kind, vector, information >> 32 if has_code else None)
    return switch_task(vcpu, backend, event, information_of(exit))
