"""Control registers: what the guest may not change or see by itself (cr_interception)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch.exception import Vector
from trapline.arch.registers import CR0_TS, CR8_TPR, GPR_NAMES
from trapline.arch.svm import ExitCode
from trapline.kvm import exits
from trapline.kvm.svm.emulation import emulate
from trapline.kvm.svm.skip import skip
from trapline.processor import SvmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.svm.backend import SvmBackend
    from trapline.kvm.vcpu import SoftwareVcpu

_MOV_CR: Final = 1 << 63
_MSW: Final = 0xF


def handle_cr_access(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """Only MOV CR comes with its operand."""
    if not exit.info_1 & _MOV_CR:
        return _machine_status_word(vcpu, backend, exit)
    state, gpr = backend.core.state, GPR_NAMES[exit.info_1 & 15]
    match exit.code:
        case ExitCode.READ_CR0:
            setattr(state, gpr, backend.get_cr0())
            return skip(vcpu, backend, exit)
        case ExitCode.WRITE_CR8:
            return _write_cr8(vcpu, backend, exit, backend.read_gpr(gpr))
        case ExitCode.WRITE_CR4:
            done = vcpu.control.write_cr4(backend.read_gpr(gpr))
        case _:
            done = vcpu.control.write_cr0(backend.read_gpr(gpr))
    if not done:
        vcpu.events.queue(Vector.GP, 0)
        return None
    return skip(vcpu, backend, exit)


def _machine_status_word(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """CLTS, LMSW and SMSW, which KVM emulates too; of memory operands, the emulator's.

    Anything else another processor has put there since: the guest comes to it.
    """
    state, cr0 = backend.core.state, backend.get_cr0()
    instruction = backend.emulator(vcpu).decode()
    if instruction is None or instruction.name not in ("clts", "lmsw", "smsw"):
        return None
    if instruction.name == "clts":
        done = vcpu.control.write_cr0(cr0 & ~CR0_TS)
    elif instruction.operands[0].kind != "reg":
        return emulate(vcpu, backend, exit)
    else:
        operand = instruction.operands[0]
        gpr = GPR_NAMES[operand.number]
        word = getattr(state, gpr)
        if instruction.name == "smsw":
            setattr(state, gpr, word & ~0xFFFF | cr0 & 0xFFFF if operand.width == 16 else cr0)
            return skip(vcpu, backend, exit)
        # LMSW cannot clear PE.
        done = vcpu.control.write_cr0(cr0 & ~(_MSW & ~1) | word & _MSW)
    if not done:
        vcpu.events.queue(Vector.GP, 0)
        return None
    return skip(vcpu, backend, exit)


def _write_cr8(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit, word: int) -> Answer:
    """Lowering the task priority may let an interrupt in: the controller must know."""
    state = backend.core.state
    if word & ~CR8_TPR:
        vcpu.events.queue(Vector.GP, 0)
        return None
    before, state.cr8 = state.cr8, word
    answer = skip(vcpu, backend, exit)
    if vcpu.apic is not None:
        vcpu.apic.write_tpr(word << 4)
    elif answer is None and before > word:
        return exits.SetTpr()
    return answer
