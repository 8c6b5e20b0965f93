"""VMCALL and VMMCALL: the hypercalls of a guest, and the wrong vendor's instruction made right.

KVM's kvm_emulate_hypercall() and emulator_fix_hypercall().  No hypercall does anything here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from trapline.arch.exception import Vector
from trapline.arch.registers import CR0_PE, RFLAGS_VM
from trapline.kvm import abi
from trapline.processor import Fault, NotMemory

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.core_backend import CoreBackend
    from trapline.kvm.vcpu import SoftwareVcpu

VMCALL: Final = b"\x0f\x01\xc1"
VMMCALL: Final = b"\x0f\x01\xd9"
VAPIC_POLL_IRQ: Final = 1  # KVM_HC_VAPIC_POLL_IRQ, whose answer is that there is nothing to say
_NO_SUCH_CALL: Final = -1000  # -KVM_ENOSYS
_NOT_PERMITTED: Final = -1  # -KVM_EPERM
_MASK_64, _MASK_32 = (1 << 64) - 1, (1 << 32) - 1


def answer(vcpu: SoftwareVcpu) -> None:
    """RAX of a hypercall; outside of 64-bit mode only its low half is looked at and written."""
    state = vcpu.state
    mask = _MASK_64 if vcpu.backend.is_64_bit else _MASK_32
    if state.cpl:
        result = _NOT_PERMITTED
    else:
        result = 0 if state.rax & mask == VAPIC_POLL_IRQ else _NO_SUCH_CALL
    state.rax = result & mask


class Repair(NamedTuple):
    """Whether the #UD is done with, and what the VMM is to be told."""

    is_done: bool
    answer: Answer = None


_ANOTHER_REASON: Final = Repair(False)


def repair(vcpu: SoftwareVcpu, backend: CoreBackend) -> Repair:
    """#UD of the other vendor's hypercall: put ours in its place, to be executed next.

    A guest that was moved here from the other vendor's processor may have it; the write is the
    guest's own, so its page tables may refuse it, and a slot that is read-only gives it to the
    VMM.
    """
    if vcpu.disabled_quirks & abi.QUIRK_FIX_HYPERCALL_INSN:
        return _ANOTHER_REASON
    emulator, state = backend.emulator(vcpu), vcpu.state
    own, found = backend.hypercall, emulator.peek(len(VMCALL))
    if found not in (VMCALL, VMMCALL) or found == own:
        return _ANOTHER_REASON
    is_protected = state.cr0 & CR0_PE and not state.system_flags & RFLAGS_VM
    if found == VMMCALL and not is_protected:
        return _ANOTHER_REASON
    if found == VMCALL and state.cpl:  # the emulator holds it for privileged
        vcpu.events.queue(Vector.GP, 0)
        return Repair(True)
    try:
        return Repair(True, emulator.patch(own))
    except NotMemory:
        return _ANOTHER_REASON
    except Fault as fault:
        is_page_fault = fault.vector == Vector.PF
        vcpu.events.queue(fault.vector, fault.error_code, fault.cr2 if is_page_fault else None)
    return Repair(True)
