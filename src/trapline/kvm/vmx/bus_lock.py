"""The bus-lock VM exit (KVM_CAP_X86_BUS_LOCK_EXIT), alone or together with another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.vmx import REASON_BUS_LOCK
from trapline.kvm import abi, exits
from trapline.processor import VmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu
    from trapline.kvm.vmx.backend import VmxBackend


def handle_bus_lock(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """Exit 74: trap-like, RIP is the next instruction.  Hardware may leave bit 26 clear here."""
    exit.reason |= REASON_BUS_LOCK
    return None


def report(vcpu: SoftwareVcpu, answer: Answer) -> exits.Exit:
    """Every exit with bit 26: a flag, and an exit of its own where there is no other."""
    vcpu.flags |= abi.RUN_X86_BUS_LOCK
    return exits.X86BusLock() if answer is None else answer
