"""From an exit into the emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.kvm.emulator import ExitInformation, delivery_failure
from trapline.processor import VmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu
    from trapline.kvm.vmx.backend import VmxBackend


def information_of(exit: VmExit) -> ExitInformation:
    """vmx_get_exit_info()."""
    return ExitInformation(
        exit.reason,
        exit.qualification,
        exit.vectoring_info,
        exit.interruption_info,
        exit.error_code,
    )


def emulate(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """The instruction at RIP; where an event was being delivered there is none."""
    information = information_of(exit)
    if exit.vectoring_info:
        return delivery_failure(information, exit.guest_physical)
    return backend.emulator(vcpu).emulate(information)
