"""What VM entry does before the guest runs: the checks that are due, then loading the state.

Nothing here runs an instruction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from trapline.arch import vmx
from trapline.arch.debug import DR7_RESET
from trapline.arch.registers import CR0_PE, CR0_PG, EFER_LMA, EFER_LME
from trapline.arch.vmcs import Field
from trapline.arch.vmx import ExitReason, InstructionError
from trapline.processor.guest import HARDWARE_EXCEPTION, VmExit
from trapline.processor.state import INDEX
from trapline.processor.vmx.control_checks import (
    control_complaints,
    event_complaints,
    host_complaints,
)
from trapline.processor.vmx.failure import Complaint, VmFail
from trapline.processor.vmx.guest_checks import (
    fix_dr7,
    guest_complaints,
    injection_complaints,
    pdptes,
)
from trapline.processor.vmx.vmcs import CONTROLS, GUEST, HOST, Vmcs

if TYPE_CHECKING:
    from trapline.processor.core import Core

_LONG_MODE: Final = EFER_LMA | EFER_LME
_BEYOND_LOW_HALF: Final = ~0x7FFFFFFFFFFF
_BEYOND_32: Final = ~0xFFFFFFFF
_DR7, _DEBUGCTL, _PAT, _EFER = (INDEX[name] for name in ("dr7", "debugctl", "pat", "efer"))
_MSR_COUNTS: Final = (
    Field.VM_ENTRY_MSR_LOAD_COUNT,
    Field.VM_EXIT_MSR_STORE_COUNT,
    Field.VM_EXIT_MSR_LOAD_COUNT,
)
_LONGEST_ERROR_CODE: Final = 0xFFFF
_LONGEST_INSTRUCTION: Final = 15
_REFUSED: Final = ExitReason.INVALID_GUEST_STATE | vmx.REASON_ENTRY_FAILURE


def prepare(core: Core, vmcs: Vmcs) -> VmExit | None:
    """Check what is due and load it; the exit, where the guest state is refused."""
    dirty, model, event = vmcs.dirty, core.model, 0
    if vmcs.entry_info & vmx.EVENT_VALID:
        event = vmcs.entry_info | (core.state.cr0 & CR0_PE) << 32  # all that the check looks at
    if dirty:
        vmcs.checked_events.clear()
    if dirty & CONTROLS:
        _fail_on(vmcs, InstructionError.ENTRY_INVALID_CONTROL, control_complaints(vmcs, model))
    if event and (
        event not in vmcs.checked_events
        or vmcs.entry_error_code > _LONGEST_ERROR_CODE
        or vmcs.entry_length > _LONGEST_INSTRUCTION
    ):
        _fail_on(vmcs, InstructionError.ENTRY_INVALID_CONTROL, event_complaints(vmcs))
    if dirty & HOST:
        _fail_on(vmcs, InstructionError.ENTRY_INVALID_HOST_STATE, host_complaints(vmcs, model))
    refusal = None
    if dirty & (CONTROLS | GUEST):
        refusal = _refusal(vmcs, guest_complaints(core, vmcs))
    if event and refusal is None:
        refusal = _check_injection(core, vmcs)
    if refusal is not None:
        return refusal
    if dirty & CONTROLS:
        _load_controls(vmcs)
    if dirty & (CONTROLS | GUEST):
        if vmcs.has_msr_areas:
            vmcs.remember()
        _load_guest(core, vmcs)
    if event:
        vmcs.checked_events.add(event)
    vmcs.dirty = 0
    return None


def _fail_on(vmcs: Vmcs, error: InstructionError, complaints: Iterator[str]) -> None:
    for complaint in complaints:
        vmcs.complaint = complaint
        vmcs.write(Field.VM_INSTRUCTION_ERROR, error)
        raise VmFail(error, complaint)


def _refusal(vmcs: Vmcs, complaints: Iterator[Complaint]) -> VmExit | None:
    for complaint in complaints:
        vmcs.complaint = complaint.text
        return VmExit(_REFUSED, complaint.qualification)
    return None


def _check_injection(core: Core, vmcs: Vmcs) -> VmExit | None:
    state = core.state
    is_exception = vmcs.entry_info >> vmx.EVENT_TYPE_SHIFT & 7 == HARDWARE_EXCEPTION
    if is_exception and not state.activity and not state.interrupt_shadow:
        return None
    return _refusal(vmcs, injection_complaints(vmcs))


def _load_controls(vmcs: Vmcs) -> None:
    """What the controls decide once for all entries until they change again."""
    entry, exits = vmcs.read(Field.VM_ENTRY_CONTROLS), vmcs.read(Field.VM_EXIT_CONTROLS)
    assert vmcs.guest is not None
    vmcs.guest.configure()
    unsaved, unloaded = [], []
    if not exits & vmx.EXIT_SAVE_DEBUG_CONTROLS:
        unsaved += [_DR7, _DEBUGCTL]
    if not exits & vmx.EXIT_SAVE_PAT:
        unsaved.append(_PAT)
    if not exits & vmx.EXIT_SAVE_EFER:
        unsaved.append(_EFER)
    if not entry & vmx.ENTRY_LOAD_DEBUG_CONTROLS:
        # The values of VMX root operation, as the last exit left them.
        unloaded += [(_DR7, DR7_RESET), (_DEBUGCTL, 0)]
    if not entry & vmx.ENTRY_LOAD_PAT:
        unloaded.append((_PAT, vmcs.read(Field.HOST_IA32_PAT)))
    if not entry & vmx.ENTRY_LOAD_EFER:
        efer = vmcs.read(Field.HOST_IA32_EFER) & ~_LONG_MODE
        if entry & vmx.ENTRY_IA32E_GUEST:
            efer |= _LONG_MODE
        unloaded.append((_EFER, efer))
    vmcs.has_msr_areas = any(vmcs.read(field) for field in _MSR_COUNTS)
    vmcs.unsaved, vmcs.unloaded = tuple(unsaved), tuple(unloaded)
    is_unrestricted = vmcs.secondary() & vmx.PROC2_UNRESTRICTED_GUEST
    owns_paging = not vmcs.read(Field.CR0_GUEST_HOST_MASK) & CR0_PG
    vmcs.follows_lma = bool(is_unrestricted and owns_paging)


def _load_guest(core: Core, vmcs: Vmcs) -> None:
    """Guest state has been written: what the processor derives from it follows."""
    state, entry = core.state, vmcs.read(Field.VM_ENTRY_CONTROLS)
    if entry & vmx.ENTRY_LOAD_DEBUG_CONTROLS:
        state.dr7 = fix_dr7(state.dr7)
    if vmcs.has_pae_paging():
        core.memory.walker.pdptes[:] = pdptes(core, vmcs)
    state.cpl = state.ss_attributes >> 5 & 3
    is_64 = entry & vmx.ENTRY_IA32E_GUEST and state.cs_attributes >> 13 & 1
    vmcs.rip_mask = _BEYOND_LOW_HALF if is_64 else _BEYOND_32
    follow(core)


def follow(core: Core) -> None:
    """What the processor derives from control, segment and debug registers."""
    core.memory.mode_changed()
    core.memory.privilege_changed()
    core.memory.breakpoints_changed()
