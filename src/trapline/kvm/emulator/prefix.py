"""KVM's forced-emulation prefix: UD2 followed by the bytes "kvm", before any instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch.exception import Vector
from trapline.arch.registers import RFLAGS_RF
from trapline.kvm import guest_debug, hypercall
from trapline.kvm.emulator.emulator import Origin
from trapline.kvm.emulator.failure import ExitInformation

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.core_backend import CoreBackend
    from trapline.kvm.vcpu import SoftwareVcpu

PREFIX: Final = b"\x0f\x0bkvm"
_CLEAR_RF: Final = 1 << 1  # KVM_FEP_CLEAR_RFLAGS_RF


def handle_undefined_opcode(
    vcpu: SoftwareVcpu, backend: CoreBackend, information: ExitInformation
) -> Answer:
    """handle_ud(): the instruction behind the prefix is the emulator's, if that was asked for;
    any other #UD is the guest's."""
    parameter = vcpu.force_emulation_prefix
    if not parameter or backend.emulator(vcpu).peek(len(PREFIX)) != PREFIX:
        repair = hypercall.repair(vcpu, backend)
        if not repair.is_done:
            vcpu.events.queue(Vector.UD)
        return repair.answer
    if parameter & _CLEAR_RF:
        guest_debug.set_rflags(vcpu, guest_debug.get_rflags(vcpu) & ~RFLAGS_RF)
    vcpu.backend.set_rip(vcpu.state.rip + len(PREFIX))
    return backend.emulator(vcpu).emulate(information, Origin.FORCED)
