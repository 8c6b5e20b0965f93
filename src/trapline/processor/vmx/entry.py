"""VM entry and VM exit: the whole of `core.enter(vmcs)`.

Checks run again only for what was written since they last passed.  The hypervisor that enters is
not on this processor, so no host state is loaded on the way out.
"""

from __future__ import annotations

import time
from copy import copy
from typing import TYPE_CHECKING, Final

from trapline.arch import vmx
from trapline.arch.registers import EFER_LMA
from trapline.arch.vmcs import Field
from trapline.arch.vmx import ExitReason
from trapline.processor import boundary
from trapline.processor.exceptions import inject
from trapline.processor.guest import HARDWARE_EXCEPTION, Leave, VmExit
from trapline.processor.vmx.intercepts import VmxGuest
from trapline.processor.vmx.msr_areas import load_on_entry, load_on_exit, store_on_exit
from trapline.processor.vmx.preparation import follow, prepare
from trapline.processor.vmx.vmcs import Vmcs

if TYPE_CHECKING:
    from trapline.processor.core import Core

# The exits that leave debug exceptions pending (SDM 3C, "Saving Non-Register State").
_KEEPS_PENDING_DEBUG: Final = frozenset(
    {
        ExitReason.INIT,
        ExitReason.IO_SMI,
        ExitReason.OTHER_SMI,
        ExitReason.MONITOR_TRAP_FLAG,
        ExitReason.TPR_BELOW_THRESHOLD,
        ExitReason.VIRTUALIZED_EOI,
        ExitReason.APIC_WRITE,
        ExitReason.BUS_LOCK,
    }
)
_MSR_FAILURE: Final = ExitReason.MSR_LOAD_FAILURE | vmx.REASON_ENTRY_FAILURE
_VALID: Final = vmx.EVENT_VALID
_EVENT: Final = ~vmx.EVENT_VALID
_MOV_SS: Final = 2
_SOFTWARE: Final = (4, 6)
_OTHER: Final = 7
_NAP: Final = 0.001  # seconds between two looks at a guest that waits in HLT


def enter(core: Core, vmcs: Vmcs) -> VmExit:
    """Run the guest until something must leave it; VmFail where the controls are refused."""
    guest = vmcs.guest
    if guest is None or core.guest is not guest:
        guest = _make_current(core, vmcs)
    if vmcs.dirty or vmcs.entry_info & _VALID:
        refusal = prepare(core, vmcs)
        if refusal is not None:
            return _fail(core, vmcs, refusal)
    if vmcs.has_msr_areas:
        vmcs.remember()
    saved = _switch(core, vmcs) if vmcs.unsaved or vmcs.unloaded else None
    if vmcs.has_msr_areas:
        refusal = _load_msrs(core, vmcs)
        if refusal is not None:
            return _fail(core, vmcs, refusal)
    exit = _until_exit(core, vmcs, guest)
    state = core.state
    if state.pending_debug:
        _keep_or_drop_traps(core, exit)
    if vmcs.has_msr_areas:
        store_on_exit(core, vmcs)
        load_on_exit(core, vmcs)
    if saved is not None:
        for slot, word in saved:
            state.q[slot] = word
    if vmcs.follows_lma:
        _follow_lma(core, vmcs)
    vmcs.entry_info &= _EVENT
    vmcs.exit = exit
    return exit


def _fail(core: Core, vmcs: Vmcs, refusal: VmExit) -> VmExit:
    """SDM 3C, "VM-Entry Failures During or After Loading Guest State": the event to inject stays
    valid, and of the exit information only reason and qualification are new."""
    load_on_exit(core, vmcs)
    exit = copy(vmcs.exit)
    exit.reason, exit.qualification = refusal.reason, refusal.qualification
    vmcs.exit = exit
    return exit


def _load_msrs(core: Core, vmcs: Vmcs) -> VmExit | None:
    """The VM-entry MSR-load area; where it fails, the guest-state area is as it was."""
    refused = load_on_entry(core, vmcs)
    if not refused:
        vmcs.remembered = None
        return None
    vmcs.recall()
    follow(core)
    vmcs.complaint = f"entry {refused} of the MSR-load area"
    return VmExit(_MSR_FAILURE, refused)


def _make_current(core: Core, vmcs: Vmcs) -> VmxGuest:
    """VMPTRLD, where the hypervisor did not do it before."""
    other = core.guest
    if isinstance(other, VmxGuest):
        other.vmcs.clear()
    vmcs.clear()
    vmcs.load(core)
    guest = vmcs.guest
    assert guest is not None
    core.guest = guest
    return guest


def _switch(core: Core, vmcs: Vmcs) -> list[tuple[int, int]]:
    """Registers that this entry or its exit does not switch; what the fields hold afterwards."""
    q = core.state.q
    saved = [(slot, q[slot]) for slot in vmcs.unsaved]
    for slot, word in vmcs.unloaded:
        q[slot] = word
    if vmcs.unloaded:
        follow(core)
    return saved


def _follow_lma(core: Core, vmcs: Vmcs) -> None:
    """SDM 3C, "Saving Control Registers, Debug Registers, and MSRs": the entry control "IA-32e
    mode guest" takes EFER.LMA."""
    controls = vmcs.read(Field.VM_ENTRY_CONTROLS)
    is_long = bool(core.state.efer & EFER_LMA)
    if is_long != bool(controls & vmx.ENTRY_IA32E_GUEST):
        vmcs.write(Field.VM_ENTRY_CONTROLS, controls ^ vmx.ENTRY_IA32E_GUEST)


def _until_exit(core: Core, vmcs: Vmcs, guest: VmxGuest) -> VmExit:
    """Inject what is to be injected, and run."""
    state = core.state
    try:
        if vmcs.entry_info & _VALID:
            _inject(core, vmcs, guest)
        else:
            guest.mtf_armed = False
        while True:
            core.run()
            if state.attention:
                state.attention = 0
                boundary.before_kick(core)
                guest.intercept_interrupt()
            elif state.activity:
                time.sleep(_NAP)
    except Leave as leave:
        return leave.exit


def _inject(core: Core, vmcs: Vmcs, guest: VmxGuest) -> None:
    """Deliver the event of the VM-entry interruption information through the guest's IDT."""
    information, state = vmcs.entry_info, core.state
    vmcs.entry_info = information & _EVENT
    kind = information >> vmx.EVENT_TYPE_SHIFT & 7
    guest.mtf_armed = True  # the monitor trap comes before the handler's first instruction
    if kind == _OTHER:
        # SDM 3C, "Injection of Pending MTF VM Exits": whatever the control says.
        raise Leave(VmExit(ExitReason.MONITOR_TRAP_FLAG))
    # SDM 3C, "Delivery of Pending Debug Exceptions after VM Entry".
    if kind not in _SOFTWARE or state.interrupt_shadow != _MOV_SS:
        state.pending_debug = 0
    state.interrupt_shadow = 0  # whatever the field says, if there is an exit on the way
    has_error_code = information & vmx.EVENT_ERROR_CODE
    error_code = vmcs.entry_error_code if has_error_code else None
    length = vmcs.entry_length if kind > HARDWARE_EXCEPTION else 0
    inject(core, information & vmx.EVENT_VECTOR, error_code, kind=kind, length=length)


def _keep_or_drop_traps(core: Core, exit: VmExit) -> None:
    """What the pending-debug-exceptions field holds after an exit that met debug traps."""
    state = core.state
    if exit.reason & vmx.REASON_BASIC in _KEEPS_PENDING_DEBUG:
        return
    is_debug = exit.interruption_info & 0x7FF == HARDWARE_EXCEPTION << 8 | 1
    if is_debug or state.interrupt_shadow != _MOV_SS:
        state.pending_debug = 0
