"""Control registers: what the guest may not change or see by itself (handle_cr)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch.exception import Vector
from trapline.arch.registers import CR0_TS, CR8_TPR, GPR_NAMES
from trapline.kvm import exits
from trapline.kvm.vmx.skip import skip
from trapline.processor import VmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu
    from trapline.kvm.vmx.backend import VmxBackend

_TO, _FROM, _CLTS, _LMSW = range(4)
_MSW: Final = 0xF


def handle_cr_access(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    qualification, state = exit.qualification, backend.core.state
    number, access = qualification & 15, qualification >> 4 & 3
    gpr = GPR_NAMES[qualification >> 8 & 15]
    if access == _TO and number == 8:
        return _write_cr8(vcpu, backend, exit, backend.read_gpr(gpr))
    if access == _FROM:
        setattr(state, gpr, state.cr3 if number == 3 else state.cr8)
        return skip(vcpu, backend, exit)
    cr0 = backend.get_cr0()
    if access == _CLTS:
        done = vcpu.control.write_cr0(cr0 & ~CR0_TS)
    elif access == _LMSW:
        # LMSW cannot clear PE.
        done = vcpu.control.write_cr0(cr0 & ~(_MSW & ~1) | qualification >> 16 & _MSW)
    else:
        write = {
            0: vcpu.control.write_cr0, 3: vcpu.control.write_cr3, 4: vcpu.control.write_cr4
        }[number]  # fmt: skip
        done = write(backend.read_gpr(gpr))
    if not done:
        vcpu.events.queue(Vector.GP, 0)
        return None
    return skip(vcpu, backend, exit)


def _write_cr8(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit, word: int) -> Answer:
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
