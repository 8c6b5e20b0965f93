"""Which function handles which #VMEXIT (KVM's svm_exit_handlers), and the shortest of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from trapline.arch.exception import Vector
from trapline.arch.svm import ExitCode, exception_code
from trapline.kvm import exits
from trapline.kvm.emulator import handle_undefined_opcode
from trapline.kvm.svm.bus_lock import handle_bus_lock
from trapline.kvm.svm.cr_access import handle_cr_access
from trapline.kvm.svm.debug import handle_breakpoint, handle_debug_exception, handle_dr_access
from trapline.kvm.svm.emulation import emulate, information_of
from trapline.kvm.svm.instruction import (
    handle_cpuid,
    handle_hlt,
    handle_io_instruction,
    handle_monitor_mwait,
    handle_msr,
    handle_nothing,
    handle_rdpmc,
    handle_undefined,
    handle_vmmcall,
    handle_xsetbv,
)
from trapline.kvm.svm.task_switch import handle_task_switch
from trapline.processor import SvmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.svm.backend import SvmBackend
    from trapline.kvm.vcpu import SoftwareVcpu

Handler = Callable[["SoftwareVcpu", "SvmBackend", SvmExit], "Answer"]
_PRESENT: Final = 1
_NOT_FOR_GUESTS: Final = (
    *(ExitCode.VMRUN, ExitCode.VMLOAD, ExitCode.VMSAVE, ExitCode.STGI, ExitCode.CLGI),
    *(ExitCode.SKINIT, ExitCode.INVLPGA, ExitCode.RDTSCP, ExitCode.INVPCID),
)


def _handle_undefined_opcode(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    return handle_undefined_opcode(vcpu, backend, information_of(exit))


def _handle_alignment_check(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    vcpu.events.queue(Vector.AC, exit.info_1)
    return None


def _handle_interrupt(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """INTR and NMI are the host's: somebody wants this vCPU's attention."""
    return None


def _handle_virtual_interrupt(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    backend.open_interrupt_window(False)
    vcpu.events.waiting = vcpu.apic is not None
    return None


def _handle_shutdown(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    return exits.Shutdown()


def _handle_nested_page_fault(vcpu: SoftwareVcpu, backend: SvmBackend, exit: SvmExit) -> Answer:
    """The first touch of a slot's page maps it; what is no memory is a device's.

    A page that was there and still refused is a write to a read-only slot.
    """
    if not exit.info_1 & _PRESENT and backend.map(exit.info_2):
        return None
    return emulate(vcpu, backend, exit)


HANDLERS: Final[dict[int, Handler]] = {
    ExitCode.READ_CR0: handle_cr_access,
    ExitCode.WRITE_CR0: handle_cr_access,
    ExitCode.WRITE_CR4: handle_cr_access,
    ExitCode.WRITE_CR8: handle_cr_access,
    ExitCode.CR0_SEL_WRITE: handle_cr_access,
    **dict.fromkeys(range(ExitCode.READ_DR0, ExitCode.READ_DR7 + 1), handle_dr_access),
    **dict.fromkeys(range(ExitCode.WRITE_DR0, ExitCode.WRITE_DR7 + 1), handle_dr_access),
    exception_code(Vector.DB): handle_debug_exception,
    exception_code(Vector.BP): handle_breakpoint,
    exception_code(Vector.UD): _handle_undefined_opcode,
    exception_code(Vector.AC): _handle_alignment_check,
    ExitCode.INTR: _handle_interrupt,
    ExitCode.NMI: _handle_interrupt,
    ExitCode.VINTR: _handle_virtual_interrupt,
    ExitCode.CPUID: handle_cpuid,
    ExitCode.HLT: handle_hlt,
    ExitCode.IOIO: handle_io_instruction,
    ExitCode.MSR: handle_msr,
    ExitCode.SHUTDOWN: _handle_shutdown,
    ExitCode.TASK_SWITCH: handle_task_switch,
    ExitCode.RDPMC: handle_rdpmc,
    ExitCode.INVD: handle_nothing,
    ExitCode.WBINVD: handle_nothing,
    ExitCode.MONITOR: handle_monitor_mwait,
    ExitCode.MWAIT: handle_monitor_mwait,
    ExitCode.VMMCALL: handle_vmmcall,
    **dict.fromkeys(_NOT_FOR_GUESTS, handle_undefined),
    ExitCode.XSETBV: handle_xsetbv,
    ExitCode.BUS_LOCK: handle_bus_lock,
    ExitCode.NPF: _handle_nested_page_fault,
}
