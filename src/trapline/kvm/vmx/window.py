"""Exits that only bring the hypervisor back: kicks, and windows for interrupts and NMIs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.kvm import exits
from trapline.processor import VmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu
    from trapline.kvm.vmx.backend import VmxBackend


def handle_external_interrupt(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """Somebody wants this vCPU's attention; the loop finds out who."""
    return None


def handle_interrupt_window(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    backend.open_interrupt_window(False)
    vcpu.events.waiting = vcpu.apic is not None
    return None


def handle_nmi_window(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    backend.open_nmi_window(False)
    vcpu.events.waiting = True
    return None


def handle_triple_fault(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    return exits.Shutdown()
