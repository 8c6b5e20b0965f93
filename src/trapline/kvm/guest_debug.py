"""KVM_SET_GUEST_DEBUG: a debugger outside the guest steps it and watches it."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trapline.arch.debug import (
    DR6_ACTIVE_LOW,
    DR6_BS,
    DR7_BREAKPOINTS_ENABLED,
    PAYLOAD_ENABLED_BREAKPOINT,
    BreakpointKind,
    enabled_breakpoints,
)
from trapline.arch.exception import Vector
from trapline.arch.registers import CR4_DE, RFLAGS_TF
from trapline.kvm import abi, exits
from trapline.kvm.quirks import Quirk

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.vcpu import SoftwareVcpu


def set_guest_debug(vcpu: SoftwareVcpu, control: int, debugreg: Mapping[int, int]) -> None:
    """kvm_arch_vcpu_ioctl_set_guest_debug(); bits that mean nothing are not refused."""
    if control & (abi.GUESTDBG_INJECT_DB | abi.GUESTDBG_INJECT_BP):
        if vcpu.events.exception.is_there:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        is_debug = control & abi.GUESTDBG_INJECT_DB
        vcpu.events.queue(Vector.DB if is_debug else Vector.BP)  # without payload, as KVM does
    rflags = get_rflags(vcpu)
    vcpu.guest_debug = control if control & abi.GUESTDBG_ENABLE else 0
    if vcpu.guest_debug & abi.GUESTDBG_USE_HW_BP:
        vcpu.debug.lend([debugreg.get(i, 0) for i in range(4)], debugreg.get(7, 0))
    else:
        vcpu.debug.give_back()
    if vcpu.guest_debug & abi.GUESTDBG_SINGLESTEP:
        vcpu.singlestep_rip = vcpu.backend.linear_rip()
    set_rflags(vcpu, rflags)
    vcpu.backend.update_exception_bitmap(vcpu.guest_debug)
    follow_debug_registers(vcpu)
    vcpu.events.waiting = True  # what BLOCKIRQ held back may come now


def follow_debug_registers(vcpu: SoftwareVcpu) -> None:
    """MOV DR exits while a debugger has the registers, or where DR6 is not the guest's to write
    as the processor has it."""
    vcpu.backend.intercept_debug_registers(bool(vcpu.guest_debug) or vcpu.debug.must_be_asked)


def get_rflags(vcpu: SoftwareVcpu) -> int:
    """RFLAGS as the guest has them: without the debugger's TF."""
    rflags = vcpu.backend.get_rflags()
    return rflags & ~RFLAGS_TF if vcpu.guest_debug & abi.GUESTDBG_SINGLESTEP else rflags


def set_rflags(vcpu: SoftwareVcpu, rflags: int) -> None:
    """kvm_set_rflags(): a debugger's TF stays while the guest stands where it was to step."""
    is_stepping = vcpu.guest_debug & abi.GUESTDBG_SINGLESTEP
    if is_stepping and vcpu.backend.linear_rip() == vcpu.singlestep_rip:
        rflags |= RFLAGS_TF
    vcpu.backend.set_rflags(rflags)


def step_emulated(vcpu: SoftwareVcpu, held: int = 0) -> Answer:
    """TF was set on an instruction that the hypervisor did itself (kvm_vcpu_do_singlestep).

    `held`: traps that MOV SS held back for it, which join the step's (upstream loses them).
    """
    if vcpu.guest_debug & abi.GUESTDBG_SINGLESTEP:
        dr6 = DR6_BS | DR6_ACTIVE_LOW
        return exits.Debug(Vector.DB, vcpu.backend.linear_rip(), dr6, 0)
    if Quirk.STEP_LOSES_HELD_TRAPS in vcpu.quirks:
        held = 0
    vcpu.events.queue(Vector.DB, payload=DR6_BS | held & ~PAYLOAD_ENABLED_BREAKPOINT)
    return None


def watches_ports(vcpu: SoftwareVcpu) -> bool:
    """Whether a breakpoint in force is on I/O."""
    dr7 = vcpu.state.dr7
    if not dr7 & DR7_BREAKPOINTS_ENABLED or not vcpu.backend.get_cr4() & CR4_DE:
        return False
    if Quirk.PORT_BREAKPOINTS_IGNORED in vcpu.quirks:
        return False
    return any(one.kind == BreakpointKind.IO for one in enabled_breakpoints(dr7))


def halt_after(vcpu: SoftwareVcpu, stepped: Answer) -> Answer:
    """HLT is done.  The guest's own single step wakes it at once; a debugger that steps it hears
    of that first, and then the guest halts."""
    if vcpu.events.exception.pending:
        return stepped
    halted = vcpu.halt()
    if stepped is None or halted is None:
        return stepped or halted
    vcpu.complete = lambda: halted
    return stepped


class SteppedView:
    """The register view while a debugger single-steps: its TF is not the guest's to see."""

    __slots__ = ("_vcpu",)

    def __init__(self, vcpu: SoftwareVcpu) -> None:
        object.__setattr__(self, "_vcpu", vcpu)

    def __getattr__(self, name: str) -> int:
        vcpu: SoftwareVcpu = object.__getattribute__(self, "_vcpu")
        return get_rflags(vcpu) if name == "rflags" else int(getattr(vcpu.state, name))

    def __setattr__(self, name: str, word: int) -> None:
        vcpu: SoftwareVcpu = object.__getattribute__(self, "_vcpu")
        if name == "rflags":
            set_rflags(vcpu, word)
        else:
            setattr(vcpu.state, name, word)
