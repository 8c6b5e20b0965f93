"""#DB and #BP of the guest, and MOV DR: for a debugger outside, or back into the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch.debug import DR6_ACTIVE_LOW, DR6_BD, DR6_BS, DR7_GD
from trapline.arch.exception import Vector
from trapline.arch.registers import CR4_DE, GPR_NAMES, RFLAGS_TF
from trapline.arch.vmcs import Field
from trapline.arch.vmx import EVENT_TYPE, EVENT_TYPE_SHIFT, EventType
from trapline.kvm import abi, exits
from trapline.kvm.debug_regs import dr6_of_causes
from trapline.kvm.quirks import Quirk
from trapline.kvm.vmx.skip import advance, skip
from trapline.processor import VmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu
    from trapline.kvm.vmx.backend import VmxBackend

_DB: Final = int(Vector.DB)
_DEBUGGER: Final = abi.GUESTDBG_SINGLESTEP | abi.GUESTDBG_USE_HW_BP
_ICEBP: Final = EventType.PRIVILEGED_SOFTWARE_EXCEPTION << EVENT_TYPE_SHIFT


def handle_debug_exception(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """handle_exception_nmi(), DB_VECTOR.

    The exit qualification is the payload as it stands: its bit 11, a bus lock, becomes a 0 in the
    guest's DR6 when the exception is delivered.
    """
    if vcpu.guest_debug & _DEBUGGER:
        dr6 = _dr6_for_debugger(vcpu, exit.qualification)
        return exits.Debug(_DB, backend.linear_rip(), dr6, backend.core.state.dr7)
    if exit.interruption_info & EVENT_TYPE == _ICEBP:
        advance(backend, exit.instruction_length)
    elif backend.core.state.interrupt_shadow:
        _keep_single_step(backend)
    vcpu.events.queue(_DB, payload=exit.qualification)
    return None


def _dr6_for_debugger(vcpu: SoftwareVcpu, qualification: int) -> int:
    """Upstream's OR hides the active-low causes."""
    if Quirk.DEBUG_EXIT_HIDES_CAUSES in vcpu.quirks:
        return qualification | DR6_ACTIVE_LOW
    return dr6_of_causes(qualification)


def _keep_single_step(backend: VmxBackend) -> None:
    """Entry wants BS pending where TF is set and STI or MOV SS blocks."""
    if backend.core.state.system_flags & RFLAGS_TF:
        pending = backend.vmcs.read(Field.GUEST_PENDING_DBG_EXCEPTIONS)
        backend.vmcs.write(Field.GUEST_PENDING_DBG_EXCEPTIONS, pending | DR6_BS)


def handle_breakpoint(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """INT3, intercepted only for a debugger's sake; RIP is the INT3."""
    backend.instruction_length = exit.instruction_length
    return exits.Debug(Vector.BP, backend.linear_rip(), 0, 0)


def handle_dr_access(vcpu: SoftwareVcpu, backend: VmxBackend, exit: VmExit) -> Answer:
    """MOV DR, which exits only while a debugger has the registers (handle_dr)."""
    qualification, state, events = exit.qualification, backend.core.state, vcpu.events
    number = qualification & 7
    if number in (4, 5) and backend.get_cr4() & CR4_DE:
        events.queue(Vector.UD)
        return None
    if state.cpl:
        events.queue(Vector.GP, 0)
        return None
    if state.dr7 & DR7_GD:
        if vcpu.guest_debug & abi.GUESTDBG_USE_HW_BP:
            dr6 = DR6_BD | DR6_ACTIVE_LOW
            return exits.Debug(_DB, backend.linear_rip(), dr6, state.dr7)
        events.queue(_DB, payload=DR6_BD)
        return None
    gpr = GPR_NAMES[qualification >> 8 & 15]
    if qualification & 1 << 4:
        setattr(state, gpr, vcpu.debug.get(number))
    elif not vcpu.debug.set(number, backend.read_gpr(gpr)):
        events.queue(Vector.GP, 0)
        return None
    return skip(vcpu, backend, exit)
