"""KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from trapline.arch.exception import Vector
from trapline.kvm import abi
from trapline.kvm.structures import VcpuEvents

if TYPE_CHECKING:
    from trapline.kvm.vcpu import SoftwareVcpu

_VALID = (
    abi.VCPUEVENT_VALID_NMI_PENDING
    | abi.VCPUEVENT_VALID_SIPI_VECTOR
    | abi.VCPUEVENT_VALID_SHADOW
    | abi.VCPUEVENT_VALID_SMM
    | abi.VCPUEVENT_VALID_PAYLOAD
    | abi.VCPUEVENT_VALID_TRIPLE_FAULT
)

_SOFT = (Vector.BP, Vector.OF)


def get(vcpu: SoftwareVcpu) -> VcpuEvents:
    """kvm_vcpu_ioctl_x86_get_vcpu_events()."""
    events, queue = vcpu.events, vcpu.events.exception
    events.take_nmis()
    flags = abi.VCPUEVENT_VALID_NMI_PENDING | abi.VCPUEVENT_VALID_SHADOW
    flags |= abi.VCPUEVENT_VALID_SMM
    injected, pending = queue.injected, queue.pending
    if vcpu.has_payloads:
        flags |= abi.VCPUEVENT_VALID_PAYLOAD
    else:
        # Without the capability a pending exception looks injected, and is delivered into DR6.
        events.deliver_payload()
        injected = injected or pending
    if queue.vector in _SOFT:  # there is no field for the length of the instruction
        injected = pending = False
    if vcpu.has_triple_faults:
        flags |= abi.VCPUEVENT_VALID_TRIPLE_FAULT
    return VcpuEvents(
        exception_injected=injected,
        exception_nr=queue.vector,
        exception_has_error_code=queue.has_error_code,
        exception_pending=pending,
        exception_error_code=queue.error_code,
        interrupt_injected=events.interrupt_injected and not events.interrupt_soft,
        interrupt_nr=events.interrupt_vector,
        interrupt_shadow=vcpu.backend.get_interrupt_shadow(),
        nmi_injected=events.nmi_injected,
        nmi_pending=events.nmi_pending,
        nmi_masked=vcpu.backend.get_nmi_mask(),
        flags=flags,
        triple_fault_pending=vcpu.has_triple_faults and events.triple_fault,
        exception_has_payload=queue.has_payload,
        exception_payload=queue.payload,
    )


def set(vcpu: SoftwareVcpu, wanted: VcpuEvents) -> None:
    """kvm_vcpu_ioctl_x86_set_vcpu_events()."""
    has_payload = bool(wanted.flags & abi.VCPUEVENT_VALID_PAYLOAD)
    _check(vcpu, wanted, has_payload)
    events, queue = vcpu.events, vcpu.events.exception
    events.take_nmis()
    vcpu.backend.drop_injection()  # what stays is injected again
    injected, pending = bool(wanted.exception_injected), bool(wanted.exception_pending)
    if has_payload:
        injected = injected and not pending
    else:
        pending = False
    queue.injected, queue.pending = injected, pending
    queue.vector = wanted.exception_nr
    queue.has_error_code = bool(wanted.exception_has_error_code)
    queue.error_code = wanted.exception_error_code
    queue.has_payload = bool(has_payload and pending and wanted.exception_has_payload)
    queue.payload = wanted.exception_payload
    events.interrupt_injected = bool(wanted.interrupt_injected)
    events.interrupt_vector = wanted.interrupt_nr
    events.interrupt_soft = bool(wanted.interrupt_soft)
    if wanted.flags & abi.VCPUEVENT_VALID_SHADOW:
        vcpu.backend.set_interrupt_shadow(wanted.interrupt_shadow)
    events.nmi_injected = bool(wanted.nmi_injected)
    if wanted.flags & abi.VCPUEVENT_VALID_NMI_PENDING:
        events.nmi_pending = wanted.nmi_pending
    vcpu.backend.set_nmi_mask(bool(wanted.nmi_masked))
    if wanted.flags & abi.VCPUEVENT_VALID_TRIPLE_FAULT:
        events.triple_fault = bool(wanted.triple_fault_pending)
    events.waiting = True


def _check(vcpu: SoftwareVcpu, wanted: VcpuEvents, has_payload: bool) -> None:
    exceptional = wanted.exception_injected or (has_payload and wanted.exception_pending)
    if (
        wanted.flags & ~_VALID
        or (has_payload and not vcpu.has_payloads)
        or (wanted.flags & abi.VCPUEVENT_VALID_TRIPLE_FAULT and not vcpu.has_triple_faults)
        or (exceptional and (wanted.exception_nr > 31 or wanted.exception_nr == 2))
        or (wanted.flags & abi.VCPUEVENT_VALID_SMM and (wanted.smi_smm or wanted.smi_pending))
    ):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
