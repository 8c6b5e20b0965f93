"""Task switches, which always leave a VMX guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch import vmx
from trapline.kvm.task_switch import Delivered, switch_task
from trapline.kvm.vmx.emulation import information_of
from trapline.processor import VmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu
    from trapline.kvm.vmx.backend import VmxBackend

_SOURCE_SHIFT: Final = 30
_THROUGH_IDT: Final = 3


def handle_task_switch(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """handle_task_switch()."""
    event = None
    if exit.qualification >> _SOURCE_SHIFT & 3 == _THROUGH_IDT:
        information = exit.vectoring_info
        has_code = information & vmx.EVENT_ERROR_CODE
        event = Delivered(
            information >> vmx.EVENT_TYPE_SHIFT & 7,
            information & vmx.EVENT_VECTOR,
            exit.vectoring_error_code if has_code else None,
        )
    return switch_task(vcpu, backend, event, information_of(exit))
