"""Instructions that leave the guest and need little: CPUID, HLT, port I/O, XSETBV and others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch import cpuid
from trapline.arch.exception import Vector
from trapline.kvm import abi, exits, hypercall
from trapline.kvm.guest_debug import halt_after, watches_ports
from trapline.kvm.vmx.emulation import emulate
from trapline.kvm.vmx.skip import advance, skip
from trapline.processor import VmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu
    from trapline.kvm.vmx.backend import VmxBackend

_LOW: Final = 0xFFFFFFFF
_TF: Final = 0x100
_IO_IN, _IO_STRING = 1 << 3, 1 << 4
_MASKS: Final = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF}


def handle_cpuid(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    state = backend.core.state
    leaf = vcpu.cpuid.answer(state.rax & _LOW, state.rcx & _LOW)
    state.rax, state.rbx, state.rcx, state.rdx = leaf
    return skip(vcpu, backend, exit)


def handle_hlt(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    return halt_after(vcpu, skip(vcpu, backend, exit))


def handle_io_instruction(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """kvm_fast_pio(); INS and OUTS are the emulator's, and what happens while a breakpoint is on
    ports, which upstream does not see."""
    qualification, state = exit.qualification, backend.core.state
    if qualification & _IO_STRING or watches_ports(vcpu):
        return emulate(vcpu, backend, exit)
    size, port = (qualification & 7) + 1, qualification >> 16
    if qualification & _IO_IN:
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
        advance(backend, exit.instruction_length)
    return exits.Io(abi.EXIT_IO_OUT, size, port, 1, data)


def handle_xsetbv(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    state = backend.core.state
    word = (state.rdx & _LOW) << 32 | state.rax & _LOW
    if state.cpl or state.rcx & _LOW or not vcpu.control.write_xcr0(word):
        vcpu.events.queue(Vector.GP, 0)
        return None
    return skip(vcpu, backend, exit)


def handle_nothing(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """INVD and WBINVD: there is nothing to do, as in KVM."""
    return skip(vcpu, backend, exit)


def handle_rdpmc(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """There are no performance counters."""
    vcpu.events.queue(Vector.GP, 0)
    return None


def handle_monitor_mwait(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """kvm_emulate_monitor_mwait(): a NOP, though the guest's CPUID should say it is undefined."""
    never_undefined = not vcpu.disabled_quirks & abi.QUIRK_MWAIT_NEVER_UD_FAULTS
    if never_undefined or vcpu.cpuid.has(cpuid.MONITOR):
        return skip(vcpu, backend, exit)
    return handle_undefined(vcpu, backend, exit)


def handle_vmcall(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    hypercall.answer(vcpu)
    return skip(vcpu, backend, exit)


def handle_undefined(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """VMX instructions: the guest's CPUID shows no VMX."""
    vcpu.events.queue(Vector.UD)
    return None
