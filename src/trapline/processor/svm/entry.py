"""VMRUN and #VMEXIT: the whole of `core.enter(vmcb)`.

The checks run again only after something they look at was written.  The hypervisor that enters
is not on this processor, so no host state is saved or loaded.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from trapline.arch import cpuid, msr, registers, svm
from trapline.arch.debug import force_dr6_reserved, force_dr7_reserved
from trapline.arch.svm import EventType
from trapline.processor import boundary
from trapline.processor.exceptions import inject
from trapline.processor.fault import Fault
from trapline.processor.guest import SOFTWARE_EXCEPTION
from trapline.processor.svm.checks import complaints, event_complaints
from trapline.processor.svm.exit import SvmExit, SvmLeave
from trapline.processor.svm.intercepts import SvmGuest
from trapline.processor.svm.vmcb import Vmcb

if TYPE_CHECKING:
    from trapline.processor.core import Core

_MASK_64: Final = (1 << 64) - 1
_SOFT_EXCEPTIONS: Final = (3, 4)  # INT3 and INTO
_HOST_DEBUGCTL: Final = 0
_NAP: Final = 0.001  # seconds between two looks at a guest that waits in HLT


def enter(core: Core, vmcb: Vmcb) -> SvmExit:
    """Run the guest until something must leave it."""
    guest = vmcb.guest
    if guest is None or core.guest is not guest:
        guest = _make_current(core, vmcb)
    if vmcb.dirty or vmcb.event_inj:
        refusal = _refusal(core, vmcb)
        if refusal:
            vmcb.complaint, vmcb.exit = refusal, SvmExit(svm.EXIT_INVALID)
            return vmcb.exit
        if vmcb.dirty:
            guest.configure()
    state = core.state
    state.activity = 0
    if guest.has_debugctl:
        exit = _until_exit(core, vmcb, guest)
    else:  # the guest runs with the host's
        own, state.debugctl = state.debugctl, _HOST_DEBUGCTL
        exit = _until_exit(core, vmcb, guest)
        state.debugctl = own
    state.pending_debug = vmcb.event_inj = 0  # the VMCB has no place for debug traps
    vmcb.exit = exit
    return exit


def _make_current(core: Core, vmcb: Vmcb) -> SvmGuest:
    """The processor holds one VMCB's state at a time."""
    other = core.guest
    if isinstance(other, SvmGuest):
        other.vmcb.clear()
    vmcb.clear()
    vmcb.load(core)
    guest = vmcb.guest
    assert guest is not None
    core.guest = guest
    return guest


def _refusal(core: Core, vmcb: Vmcb) -> str:
    """Why VMRUN ends in VMEXIT_INVALID; "" if it does not."""
    if vmcb.dirty:
        for complaint in complaints(vmcb, core.model):
            return complaint
    return next(event_complaints(vmcb.event_inj), "")


def _until_exit(core: Core, vmcb: Vmcb, guest: SvmGuest) -> SvmExit:
    """Load what was written, inject what is to be injected, and run."""
    state = core.state
    try:
        if vmcb.dirty:
            _load_guest(core, vmcb)
            vmcb.dirty = False
        if vmcb.event_inj & svm.EVENT_VALID:
            _inject(core, vmcb)
        while True:
            core.run()
            if state.attention:
                state.attention = 0
                boundary.before_kick(core)
                guest.intercept_interrupt()
            elif state.activity:
                time.sleep(_NAP)
    except SvmLeave as leave:
        if vmcb.event_inj & svm.EVENT_VALID:  # the PDPTEs could not be read: still to be injected
            leave.svm_exit.int_info = vmcb.event_inj
        return leave.svm_exit
    except Fault:  # nothing of the guest has run
        vmcb.complaint = "malformed PDPTEs"
        return SvmExit(svm.EXIT_INVALID)


def _load_guest(core: Core, vmcb: Vmcb) -> None:
    """The save area has been written: what the processor derives from it follows."""
    state, model, memory = core.state, core.model, core.memory
    # The checks go by LME and PG, and so does the mode.
    is_long = state.efer & registers.EFER_LME and state.cr0 & registers.CR0_PG
    state.efer = state.efer & ~registers.EFER_LMA | (registers.EFER_LMA if is_long else 0)
    has_bld = model.has(cpuid.BUS_LOCK_DETECT)
    state.dr6 = force_dr6_reserved(state.dr6, has_bld, False)
    state.dr7 = force_dr7_reserved(state.dr7, False)
    # Reserved bits of DEBUGCTL are ignored, not refused.
    supported = msr.DEBUGCTL_LBR | msr.DEBUGCTL_BTF | (msr.DEBUGCTL_BLD if has_bld else 0)
    state.debugctl &= supported
    if not state.cr0 & registers.CR0_PE:
        state.cpl = 0
    elif state.system_flags & registers.RFLAGS_VM:
        state.cpl = 3
    memory.mode_changed()
    if _has_pdptes(core):
        memory.walker.pdptes = memory.walker.read_pdptes(state.cr3)
        memory.mode_changed()
    memory.privilege_changed()
    memory.breakpoints_changed()


def _has_pdptes(core: Core) -> bool:
    state = core.state
    if state.efer & registers.EFER_LMA or not state.cr4 & registers.CR4_PAE:
        return False
    return bool(state.cr0 & registers.CR0_PG)


def _inject(core: Core, vmcb: Vmcb) -> None:
    """Deliver EVENTINJ through the guest's IDT; DR6 and CR2 are the hypervisor's business."""
    event, state = vmcb.event_inj, core.state
    vmcb.event_inj = 0
    kind, vector = event >> 8 & 7, event & 0xFF
    error_code = event >> 32 if event & svm.EVENT_ERROR_CODE else None
    length = 0
    if kind == EventType.SOFTWARE_INTERRUPT or (
        kind == EventType.EXCEPTION and vector in _SOFT_EXCEPTIONS
    ):
        # With NRIPS their handlers return to nRIP.
        length = vmcb.exit.next_rip - state.rip & _MASK_64
        kind = SOFTWARE_EXCEPTION if kind == EventType.EXCEPTION else kind
    inject(core, vector, error_code, kind=kind, length=length)
