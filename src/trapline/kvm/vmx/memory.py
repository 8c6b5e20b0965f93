"""Accesses that the extended page tables do not allow, yet or ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.kvm.vmx.emulation import emulate
from trapline.processor import VmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu
    from trapline.kvm.vmx.backend import VmxBackend


def handle_ept_violation(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """The first touch of a slot's page maps it; what is no memory is a device's.

    A page that was there (bits 5:3) and still refused is a write to a read-only slot.
    """
    was_there = exit.qualification >> 3 & 7
    if not was_there and backend.map(exit.guest_physical):
        return None
    return emulate(vcpu, backend, exit)
