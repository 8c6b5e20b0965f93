"""Exceptions of the guest that the hypervisor takes: most go straight back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.exception import Vector
from trapline.arch.vmx import EVENT_ERROR_CODE, EVENT_VECTOR
from trapline.kvm import abi, exits
from trapline.kvm.emulator import handle_undefined_opcode
from trapline.kvm.vmx.debug import handle_breakpoint, handle_debug_exception
from trapline.kvm.vmx.emulation import information_of
from trapline.processor import VmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu
    from trapline.kvm.vmx.backend import VmxBackend

_DB, _BP, _NMI = int(Vector.DB), int(Vector.BP), int(Vector.NMI)
_UD, _AC = int(Vector.UD), int(Vector.AC)


def handle_exception_or_nmi(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    information = exit.interruption_info
    vector = information & EVENT_VECTOR
    if vector == _DB:
        return handle_debug_exception(vcpu, backend, exit)
    if vector == _BP:
        return handle_breakpoint(vcpu, backend, exit)
    if vector == _NMI:
        return None  # the host's own
    if vector == _UD:
        return handle_undefined_opcode(vcpu, backend, information_of(exit))
    if vector == _AC:
        has_error_code = information & EVENT_ERROR_CODE
        vcpu.events.queue(vector, exit.error_code if has_error_code else None)
        return None
    return exits.InternalError(abi.INTERNAL_ERROR_SIMUL_EX, [exit.reason, information])
