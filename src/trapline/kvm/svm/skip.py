"""Past an instruction that the hypervisor did in the guest's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.registers import RFLAGS_RF, RFLAGS_TF
from trapline.kvm.guest_debug import step_emulated
from trapline.processor import SvmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.svm.backend import SvmBackend
    from trapline.kvm.vcpu import SoftwareVcpu


def skip(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """kvm_skip_emulated_instruction(): RIP, the interrupt shadow, and a single step's trap."""
    advance(backend, exit)
    if backend.core.state.system_flags & RFLAGS_TF:
        return step_emulated(vcpu)
    return None


def advance(backend: SvmBackend, exit: SvmExit) -> None:
    """RIP, the interrupt shadow, and RF, which is for one instruction (upstream leaves it).

    nRIP is where the processor would have gone on.
    """
    state = backend.core.state
    state.rip = exit.next_rip
    state.interrupt_shadow = 0
    state.system_flags &= ~RFLAGS_RF
