"""From an exit into the emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.kvm.emulator import ExitInformation, delivery_failure
from trapline.processor import SvmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.svm.backend import SvmBackend
    from trapline.kvm.vcpu import SoftwareVcpu

_LOW: Final = 0xFFFFFFFF


def information_of(exit: SvmExit) -> ExitInformation:
    """svm_get_exit_info()."""
    event = exit.int_info
    return ExitInformation(exit.code, exit.info_1, exit.info_2, event & _LOW, event >> 32)


def emulate(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """The instruction at RIP; where an event was being delivered there is none."""
    information = information_of(exit)
    if exit.int_info:
        return delivery_failure(information, exit.info_2)
    return backend.emulator(vcpu).emulate(information)
