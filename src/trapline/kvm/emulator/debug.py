"""Debug exceptions of emulated instructions: a debugger's, or the guest's own.

The processor says which traps an instruction has caused; whose they are is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from trapline.arch.debug import (
    DR6_BREAKPOINTS,
    DR6_BS,
    PAYLOAD_ENABLED_BREAKPOINT,
    BreakpointKind,
    enabled_breakpoints,
)
from trapline.arch.exception import Vector
from trapline.arch.registers import RFLAGS_RF
from trapline.kvm import abi, exits
from trapline.kvm.debug_regs import dr6_of_causes

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu

_DB: Final = int(Vector.DB)


def take_traps(vcpu: SoftwareVcpu, payload: int) -> Answer:
    """What an instruction that is complete now has caused: single step, data breakpoints, a bus
    lock, in one #DB (kvm_vcpu_do_singlestep, and what upstream leaves out)."""
    payload &= ~PAYLOAD_ENABLED_BREAKPOINT
    if not payload:
        return None
    stepped = vcpu.guest_debug & abi.GUESTDBG_SINGLESTEP and payload & DR6_BS
    watched = vcpu.guest_debug & abi.GUESTDBG_USE_HW_BP and payload & DR6_BREAKPOINTS
    if stepped or watched:
        return _debug_exit(vcpu, payload)
    vcpu.events.queue(_DB, payload=payload)
    return None


def code_breakpoint(vcpu: SoftwareVcpu, ignores_shadow: bool) -> tuple[Answer, int]:
    """kvm_vcpu_check_code_breakpoint(): the debugger's exit, or the guest's payload.

    `ignores_shadow`: AMD's processors heed instruction breakpoints after MOV SS too.
    """
    linear, state = vcpu.backend.linear_rip(), vcpu.state
    if vcpu.guest_debug & abi.GUESTDBG_USE_HW_BP:
        hit = _hits((state.dr0, state.dr1, state.dr2, state.dr3), state.dr7, linear)
        if hit:
            return _debug_exit(vcpu, hit), 0
    if vcpu.backend.get_rflags() & RFLAGS_RF:
        return None, 0
    if vcpu.backend.get_interrupt_shadow() & abi.SHADOW_INT_MOV_SS and not ignores_shadow:
        return None, 0
    return None, _hits(vcpu.debug.db, vcpu.debug.get_dr7(), linear)


def _hits(db: Sequence[int], dr7: int, linear: int) -> int:
    hit = 0
    for one in enabled_breakpoints(dr7):
        if one.kind == BreakpointKind.EXECUTE and db[one.index] == linear:
            hit |= one.payload
    return hit


def _debug_exit(vcpu: SoftwareVcpu, payload: int) -> exits.Debug:
    dr6 = dr6_of_causes(payload)
    return exits.Debug(_DB, vcpu.backend.linear_rip(), dr6, vcpu.state.dr7)
