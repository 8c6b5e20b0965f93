"""The bus lock threshold (KVM_CAP_X86_BUS_LOCK_EXIT): the exit comes before the bus is locked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.kvm import abi, exits
from trapline.processor import SvmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.svm.backend import SvmBackend
    from trapline.kvm.vcpu import SoftwareVcpu


def handle_bus_lock(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """bus_lock_exit(): RIP is the instruction, which has not been done.

    When the VMM comes back and has left RIP alone, the counter lets it pass once
    (complete_userspace_buslock).
    """
    rip = backend.linear_rip()

    def let_pass() -> Answer:
        if backend.linear_rip() == rip:
            backend.vmcb.bus_lock_counter = 1
        return None

    vcpu.flags |= abi.RUN_X86_BUS_LOCK
    vcpu.complete = let_pass
    return exits.X86BusLock()
