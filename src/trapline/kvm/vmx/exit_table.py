"""Which function handles which VM exit (KVM's kvm_vmx_exit_handlers)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from trapline.arch.vmx import ExitReason
from trapline.kvm.vmx.bus_lock import handle_bus_lock
from trapline.kvm.vmx.cr_access import handle_cr_access
from trapline.kvm.vmx.debug import handle_dr_access
from trapline.kvm.vmx.exception import handle_exception_or_nmi
from trapline.kvm.vmx.instruction import (
    handle_cpuid,
    handle_hlt,
    handle_io_instruction,
    handle_monitor_mwait,
    handle_nothing,
    handle_rdpmc,
    handle_undefined,
    handle_vmcall,
    handle_xsetbv,
)
from trapline.kvm.vmx.memory import handle_ept_violation
from trapline.kvm.vmx.msr_access import handle_rdmsr, handle_wrmsr
from trapline.kvm.vmx.task_switch import handle_task_switch
from trapline.kvm.vmx.window import (
    handle_external_interrupt,
    handle_interrupt_window,
    handle_nmi_window,
    handle_triple_fault,
)
from trapline.processor import VmExit

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu
    from trapline.kvm.vmx.backend import VmxBackend

Handler = Callable[["SoftwareVcpu", "VmxBackend", VmExit], "Answer"]

_NOT_FOR_GUESTS: Final = (
    *range(ExitReason.VMCLEAR, ExitReason.VMXON + 1),
    ExitReason.INVEPT,
    ExitReason.INVVPID,
    ExitReason.GETSEC,
)

HANDLERS: Final[dict[int, Handler]] = {
    ExitReason.EXCEPTION_OR_NMI: handle_exception_or_nmi,
    ExitReason.EXTERNAL_INTERRUPT: handle_external_interrupt,
    ExitReason.TRIPLE_FAULT: handle_triple_fault,
    ExitReason.INTERRUPT_WINDOW: handle_interrupt_window,
    ExitReason.NMI_WINDOW: handle_nmi_window,
    ExitReason.TASK_SWITCH: handle_task_switch,
    ExitReason.CPUID: handle_cpuid,
    ExitReason.HLT: handle_hlt,
    ExitReason.INVD: handle_nothing,
    ExitReason.RDPMC: handle_rdpmc,
    ExitReason.VMCALL: handle_vmcall,
    ExitReason.CR_ACCESS: handle_cr_access,
    ExitReason.MOV_DR: handle_dr_access,
    ExitReason.IO_INSTRUCTION: handle_io_instruction,
    ExitReason.RDMSR: handle_rdmsr,
    ExitReason.WRMSR: handle_wrmsr,
    ExitReason.MWAIT: handle_monitor_mwait,
    ExitReason.MONITOR: handle_monitor_mwait,
    ExitReason.EPT_VIOLATION: handle_ept_violation,
    ExitReason.WBINVD: handle_nothing,
    ExitReason.XSETBV: handle_xsetbv,
    ExitReason.BUS_LOCK: handle_bus_lock,
    **dict.fromkeys(_NOT_FOR_GUESTS, handle_undefined),
}
