"""RDMSR and WRMSR of the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch.exception import Vector
from trapline.kvm.vmx.skip import skip
from trapline.processor import VmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu
    from trapline.kvm.vmx.backend import VmxBackend

_LOW: Final = 0xFFFFFFFF


def handle_rdmsr(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    state = backend.core.state
    word = vcpu.msrs.get(state.rcx & _LOW)
    if word is None:
        vcpu.events.queue(Vector.GP, 0)
        return None
    state.rax, state.rdx = word & _LOW, word >> 32
    return skip(vcpu, backend, exit)


def handle_wrmsr(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    state = backend.core.state
    word = (state.rdx & _LOW) << 32 | state.rax & _LOW
    if not vcpu.msrs.set(state.rcx & _LOW, word):
        vcpu.events.queue(Vector.GP, 0)
        return None
    return skip(vcpu, backend, exit)
