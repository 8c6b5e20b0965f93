"""Instructions that the hypervisor does in the guest's place, whichever way they came to it.

Each works on the vCPU as it stands before the instruction, and raises Fault, or Instead where the
instruction does not complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch.debug import DR6_ACTIVE_LOW, DR6_BD, DR7_GD, DR_UPPER
from trapline.arch.exception import Vector
from trapline.arch.registers import CR8_TPR, GPR_NAMES
from trapline.kvm import abi, exits, hypercall
from trapline.processor import Fault

if TYPE_CHECKING:
    from trapline.kvm.backend import Answer
    from trapline.kvm.core_backend import CoreBackend
    from trapline.kvm.vcpu import SoftwareVcpu

_LOW: Final = 0xFFFFFFFF
_MASK_64: Final = (1 << 64) - 1
_DB: Final = int(Vector.DB)


class Instead(Exception):  # a way out, not an error
    """The instruction does not complete: this is what happens instead."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


def _require(is_allowed: bool) -> None:
    if not is_allowed:
        raise Fault(Vector.GP, 0)


def identify(vcpu: SoftwareVcpu) -> Answer:
    """CPUID."""
    state = vcpu.state
    answer = vcpu.cpuid.answer(state.rax & _LOW, state.rcx & _LOW)
    state.rax, state.rbx, state.rcx, state.rdx = answer
    return None


def call_hypervisor(vcpu: SoftwareVcpu) -> Answer:
    """VMCALL and VMMCALL."""
    hypercall.answer(vcpu)
    return None


def write_xcr(vcpu: SoftwareVcpu) -> Answer:
    """XSETBV."""
    state = vcpu.state
    word = (state.rdx & _LOW) << 32 | state.rax & _LOW
    _require(not state.rcx & _LOW and vcpu.control.write_xcr0(word))
    return None


def read_msr(vcpu: SoftwareVcpu, index: int) -> Answer:
    word = vcpu.msrs.get(index)
    if word is None:
        raise Fault(Vector.GP, 0)
    vcpu.state.rax, vcpu.state.rdx = word & _LOW, word >> 32
    return None


def write_msr(vcpu: SoftwareVcpu, index: int) -> Answer:
    state = vcpu.state
    _require(vcpu.msrs.set(index, (state.rdx & _LOW) << 32 | state.rax & _LOW))
    return None


# -- control registers --------------------------------------------------------------------------


def read_cr(vcpu: SoftwareVcpu, register: int) -> int:
    """emulator_get_cr()."""
    match register:
        case 0:
            return vcpu.backend.get_cr0()
        case 4:
            return vcpu.backend.get_cr4()
    return int(vcpu.state.cr3 if register == 3 else vcpu.state.cr8)


def write_cr(vcpu: SoftwareVcpu, backend: CoreBackend, register: int, word: int) -> Answer:
    """emulator_set_cr()."""
    if register == 8:
        _require(not word & ~CR8_TPR)
        vcpu.state.cr8 = word
        if vcpu.apic is not None:
            vcpu.apic.write_tpr(word << 4)
        return None
    control = vcpu.control
    write = {0: control.write_cr0, 3: control.write_cr3, 4: control.write_cr4}[register]
    _require(write(word))
    backend.core.memory.flush()  # the value may be the one that was there
    return None


# -- debug registers ----------------------------------------------------------------------------


def access_dr(vcpu: SoftwareVcpu, register: int, is_read: bool, gpr: int) -> Answer:
    """check_dr_read(), check_dr_write() and em_dr_write(); #UD was the description's."""
    state, name = vcpu.state, GPR_NAMES[gpr]
    word = vcpu.backend.read_gpr(name)
    if not is_read and register in (6, 7):
        _require(not word & DR_UPPER)
    _check_general_detect(vcpu)
    if is_read:
        mask = _MASK_64 if vcpu.backend.is_64_bit else _LOW
        setattr(state, name, vcpu.debug.get(register) & mask)
    else:
        _require(vcpu.debug.set(register, word))
    return None


def _check_general_detect(vcpu: SoftwareVcpu) -> None:
    """DR7.GD, a debugger's before the guest's (51543660c521)."""
    dr7 = vcpu.state.dr7
    if vcpu.guest_debug & abi.GUESTDBG_USE_HW_BP and dr7 & DR7_GD:
        dr6 = DR6_BD | DR6_ACTIVE_LOW
        raise Instead(exits.Debug(_DB, vcpu.backend.linear_rip(), dr6, dr7))
    if vcpu.debug.get_dr7() & DR7_GD:
        raise Fault(_DB, payload=DR6_BD)


# -- exceptions by software ---------------------------------------------------------------------


def raise_by_software(vcpu: SoftwareVcpu, backend: CoreBackend, vector: int, length: int) -> Answer:
    """INT3, INTO, and INT1, whose #DB has no cause that DR6 could tell."""
    if vector != _DB:
        backend.instruction_length = length
        vcpu.events.queue(vector)
        raise Instead(None)
    state = vcpu.state
    state.rip = state.rip + length & (_MASK_64 if backend.is_64_bit else _LOW)
    state.interrupt_shadow = 0
    # On AMD's processors INT1 leaves DR6 alone; Intel's clear B0 to B3.
    vcpu.events.queue(_DB, payload=None if backend.core.model.is_amd else 0)
    raise Instead(None)
