"""Past an instruction that the hypervisor did in the guest's place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch.registers import EFER_LMA, RFLAGS_RF, RFLAGS_TF
from trapline.kvm import abi
from trapline.kvm.guest_debug import step_emulated
from trapline.processor import VmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu
    from trapline.kvm.vmx.backend import VmxBackend

_MASK_64: Final = (1 << 64) - 1
_L: Final = 1 << 13


def skip(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """kvm_skip_emulated_instruction(): RIP, the interrupt shadow, and a single step's trap."""
    state = backend.core.state
    advance(backend, exit.instruction_length)
    if state.system_flags & RFLAGS_TF:
        held = 0
        if not vcpu.guest_debug & abi.GUESTDBG_SINGLESTEP:
            # What is injected at the next entry would make it drop the pending ones.
            held, state.pending_debug = state.pending_debug, 0
        return step_emulated(vcpu, held)
    return None


def advance(backend: VmxBackend, length: int) -> None:
    """RIP and the interrupt shadow; and RF, which is for one instruction (upstream leaves it)."""
    state = backend.core.state
    rip = state.rip
    following = rip + length & _MASK_64
    if (rip ^ following) >> 32 and not (state.efer & EFER_LMA and state.cs_attributes & _L):
        following &= 0xFFFFFFFF
    state.rip = following
    state.interrupt_shadow = 0
    state.system_flags &= ~RFLAGS_RF
