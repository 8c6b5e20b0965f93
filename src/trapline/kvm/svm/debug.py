"""#DB and #BP of the guest, and MOV DR: for a debugger outside, or back into the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch.debug import DR6_ACTIVE_LOW, DR6_BD, DR7_GD
from trapline.arch.exception import Vector
from trapline.arch.registers import CR4_DE, GPR_NAMES
from trapline.arch.svm import ExitCode
from trapline.kvm import abi, exits
from trapline.kvm.svm.skip import skip
from trapline.processor import SvmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.svm.backend import SvmBackend
    from trapline.kvm.vcpu import SoftwareVcpu

_DB: Final = int(Vector.DB)
_DEBUGGER: Final = abi.GUESTDBG_SINGLESTEP | abi.GUESTDBG_USE_HW_BP


def handle_debug_exception(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """db_interception(): the saved DR6 holds the causes already, so the payload is made from it.

    While the guest's DR6 is in the processor, what its handler left there is in the payload too:
    an AMD guest finds bit 11 as the processor would have left it.
    """
    dr6 = backend.core.state.dr6
    if vcpu.guest_debug:
        dr6, dr7 = backend.saved_debug
        if vcpu.guest_debug & _DEBUGGER:
            return exits.Debug(_DB, backend.linear_rip(), dr6, dr7)
    vcpu.events.queue(_DB, payload=dr6 ^ DR6_ACTIVE_LOW)
    return None


def handle_breakpoint(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """INT3, intercepted only for a debugger's sake; RIP is the INT3."""
    backend.instruction_length = exit.next_rip - backend.core.state.rip
    return exits.Debug(Vector.BP, backend.linear_rip(), 0, 0)


def handle_dr_access(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """dr_interception(); MOV DR exits only while a debugger has the registers."""
    state, events = backend.core.state, vcpu.events
    number, is_write = exit.code & 7, exit.code >= ExitCode.WRITE_DR0
    if number in (4, 5) and backend.get_cr4() & CR4_DE:
        events.queue(Vector.UD)
        return None
    if state.dr7 & DR7_GD:
        if vcpu.guest_debug & abi.GUESTDBG_USE_HW_BP:
            dr6 = DR6_BD | DR6_ACTIVE_LOW
            return exits.Debug(_DB, backend.linear_rip(), dr6, state.dr7)
        events.queue(_DB, payload=DR6_BD)
        return None
    gpr = GPR_NAMES[exit.info_1 & 15]
    if not is_write:
        setattr(state, gpr, vcpu.debug.get(number))
    elif not vcpu.debug.set(number, backend.read_gpr(gpr)):
        events.queue(Vector.GP, 0)
        return None
    return skip(vcpu, backend, exit)
