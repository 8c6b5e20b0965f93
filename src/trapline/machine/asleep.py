"""Whether a vCPU that does not run will ever wake up, all others asleep like it."""

from __future__ import annotations

from trapline.arch import apic, msr
from trapline.arch.apic import TimerMode
from trapline.kvm import Vcpu, abi
from trapline.machine.board import Board

_WAITING = (abi.MpState.UNINITIALIZED, abi.MpState.INIT_RECEIVED)


def has_halted(vcpu: Vcpu) -> bool:
    return vcpu.get_mp_state() == abi.MpState.HALTED


def is_asleep(board: Board, number: int) -> bool:
    """For good; no vCPU runs meanwhile."""
    vcpu = board.vcpus[number]
    if vcpu.get_mp_state() in _WAITING:
        return True
    if not has_halted(vcpu) or vcpu.get_vcpu_events().nmi_pending:
        return False
    if not vcpu.if_flag:
        return board.nmi_deadline() is None
    if board.deadline() is not None or (number == 0 and board.pics.has_interrupt):
        return False
    return not _has_timer(vcpu)


def _has_timer(vcpu: Vcpu) -> bool:
    """Whether an interrupt of its own is requested or will be."""
    area = vcpu.get_lapic()

    def word(offset: int) -> int:
        return int.from_bytes(area[offset : offset + 4], "little")

    if any(word(apic.IRR + 16 * i) for i in range(8)):
        return True
    timer = word(apic.LVT_TIMER)
    if timer & apic.LVT_MASKED:
        return False
    if timer >> apic.LVT_TIMER_MODE_SHIFT & 3 == TimerMode.TSC_DEADLINE:
        return bool(vcpu.get_msrs([msr.IA32_TSC_DEADLINE]).get(msr.IA32_TSC_DEADLINE))
    return word(apic.CURRENT_COUNT) != 0
