"""Instructions that leave the guest and need little: CPUID, HLT, port I/O, XSETBV and others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch import cpuid
from trapline.arch.exception import Vector
from trapline.kvm import abi, exits, hypercall
from trapline.kvm.guest_debug import halt_after, watches_ports
from trapline.kvm.svm.emulation import emulate
from trapline.kvm.svm.skip import advance, skip
from trapline.processor import SvmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.svm.backend import SvmBackend
    from trapline.kvm.vcpu import SoftwareVcpu

_LOW: Final = 0xFFFFFFFF
_TF: Final = 0x100
_IO_IN, _IO_STRING = 1, 1 << 2
_MASKS: Final = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF}


def handle_cpuid(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    state = backend.core.state
    leaf = vcpu.cpuid.answer(state.rax & _LOW, state.rcx & _LOW)
    state.rax, state.rbx, state.rcx, state.rdx = leaf
    return skip(vcpu, backend, exit)


def handle_hlt(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    return halt_after(vcpu, skip(vcpu, backend, exit))


def handle_io_instruction(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """io_interception() and kvm_fast_pio(); INS and OUTS are the emulator's, and what happens
    while a breakpoint is on ports, which upstream does not see."""
    information, state = exit.info_1, backend.core.state
    if information & _IO_STRING or watches_ports(vcpu):
        return emulate(vcpu, backend, exit)
    size, port = information >> 4 & 7, information >> 16
    if information & _IO_IN:
        answer = exits.Io(abi.EXIT_IO_IN, size, port, 1, bytearray(size))
        rip = state.rip

        def complete_input() -> Answer:
            if state.rip != rip:  # the VMM sent the guest elsewhere
                return None
            word = int.from_bytes(answer.data, "little")
            state.rax = word if size == 4 else state.rax & ~_MASKS[size] | word
            return skip(vcpu, backend, exit)

        vcpu.complete = complete_input
        return answer
    data = bytearray((state.rax & _MASKS[size]).to_bytes(size, "little"))
    if state.system_flags & _TF:
        vcpu.complete = lambda: skip(vcpu, backend, exit)
    else:
        advance(backend, exit)
    return exits.Io(abi.EXIT_IO_OUT, size, port, 1, data)


def handle_msr(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """msr_interception(): EXITINFO1 says which of RDMSR and WRMSR."""
    state = backend.core.state
    index = state.rcx & _LOW
    if exit.info_1:
        done = vcpu.msrs.set(index, (state.rdx & _LOW) << 32 | state.rax & _LOW)
    else:
        word = vcpu.msrs.get(index)
        done = word is not None
        if word is not None:
            state.rax, state.rdx = word & _LOW, word >> 32
    if not done:
        vcpu.events.queue(Vector.GP, 0)
        return None
    return skip(vcpu, backend, exit)


def handle_xsetbv(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    state = backend.core.state
    word = (state.rdx & _LOW) << 32 | state.rax & _LOW
    if state.cpl or state.rcx & _LOW or not vcpu.control.write_xcr0(word):
        vcpu.events.queue(Vector.GP, 0)
        return None
    return skip(vcpu, backend, exit)


def handle_nothing(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """INVD and WBINVD: there is nothing to do, as in KVM."""
    return skip(vcpu, backend, exit)


def handle_rdpmc(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """There are no performance counters."""
    vcpu.events.queue(Vector.GP, 0)
    return None


def handle_monitor_mwait(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """kvm_emulate_monitor_mwait(): a NOP, though the guest's CPUID should say it is undefined."""
    never_undefined = not vcpu.disabled_quirks & abi.QUIRK_MWAIT_NEVER_UD_FAULTS
    if never_undefined or vcpu.cpuid.has(cpuid.MONITOR):
        return skip(vcpu, backend, exit)
    return handle_undefined(vcpu, backend, exit)


def handle_vmmcall(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    hypercall.answer(vcpu)
    return skip(vcpu, backend, exit)


def handle_undefined(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """SVM instructions, and others that the guest's CPUID does not show."""
    vcpu.events.queue(Vector.UD)
    return None
