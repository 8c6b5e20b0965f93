"""A stopped vCPU in a sentence: what it did that the run could not go on with."""

from __future__ import annotations

from trapline.arch.vmx import ExitReason
from trapline.kvm import Vcpu, abi, exits
from trapline.machine.board import Board
from trapline.machine.boot import service_call


def explain_halt(board: Board, vcpu: Vcpu) -> str:
    """Why a vCPU that has halted will not wake up."""
    if vcpu.if_flag:
        return "halted, and nothing can wake it"
    return _explain_service(board, vcpu) or "halted with interrupts off"


def _explain_service(board: Board, vcpu: Vcpu) -> str:
    """What led to the stub of a vector that the guest has no handler for, if it is in one."""
    sregs, regs = vcpu.get_sregs(), vcpu.regs
    vector = service_call(sregs.cs.base, regs.rip)
    if vector is None:
        return ""
    frame = board.memory.read(sregs.ss.base + (regs.rsp & 0xFFFF), 4)
    ip, cs = frame[:2][::-1].hex(), frame[2:][::-1].hex()
    return f"came to interrupt vector {vector:#x} from {cs}:{ip}; there is no BIOS behind it"


def explain_exit(board: Board, vcpu: Vcpu, exit: exits.Exit) -> str:
    """What the guest did that the hypervisor could not go on with."""
    sregs, rip = vcpu.get_sregs(), vcpu.regs.rip
    linear = sregs.cs.base + rip & 0xFFFFFFFF if not sregs.cs.l else rip
    code = vcpu.translate(linear)
    if code.valid and not board.memory.has(code.physical_address, 1):
        return f"jumped to {linear:#x}, where there is no memory"
    match exit:
        case exits.InternalError(abi.INTERNAL_ERROR_EMULATION, [reason, _, physical, *_]):
            if reason & 0xFFFF == ExitReason.EPT_VIOLATION:
                return f"touched {physical:#x}, where there is neither memory nor a device"
            return "came to an instruction that the hypervisor cannot do in its place"
        case exits.InternalError(abi.INTERNAL_ERROR_DELIVERY_EV):
            return "took an exception or interrupt whose handler is in device memory"
        case exits.FailEntry(reason):
            return f"was refused by the processor (VM-entry failure {reason:#x})"
    return "came to what the hypervisor could not go on with"
