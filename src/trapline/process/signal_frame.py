"""The frame the kernel leaves on a program's stack for a signal handler, and the way back.

arch/x86/kernel/signal_64.c and fpu/signal.c; which signal is delivered when is `signals`' business.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from trapline.kvm import Regs
from trapline.process import layout
from trapline.process.extended_state import X87_AND_SSE
from trapline.process.memory import GuestFault
from trapline.process.signal_entry import SIGINFO_SIZE
from trapline.process.signal_state import (
    SA_ONSTACK,
    SA_RESTORER,
    SA_SIGINFO,
    SS_AUTODISARM,
    Action,
    AlternateStack,
)

if TYPE_CHECKING:
    from trapline.process.thread import Thread

RED_ZONE = 128
# What a program may set of RFLAGS by a frame (FIX_EFLAGS).
_USER_FLAGS = 0x50DD5
_DF, _TF, _RF = 1 << 10, 1 << 8, 1 << 16

# struct ucontext: flags, link, stack, then sigcontext, then the mask.
_HEAD = struct.Struct("<QQQi4xQ")
_CONTEXT_REGISTERS = (
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx"),
    *("rdx", "rax", "rcx", "rsp", "rip", "rflags"),
)
_CONTEXT = struct.Struct("<18Q4H5Q64xQ")  # ..., err, trapno, oldmask, cr2, fpstate, mask
_UC_FLAGS = 7  # UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
_UCONTEXT_SIZE = _HEAD.size + _CONTEXT.size
FRAME_SIZE = 8 + _UCONTEXT_SIZE + SIGINFO_SIZE

_SOFTWARE_BYTES = 464  # of the FXSAVE area, which the processor leaves to the system
_FPX = struct.Struct("<IIQI28x")  # struct _fpx_sw_bytes
_MAGIC1, _MAGIC2 = 0x46505853, 0x46505845
_MAGIC2_SIZE = 4
_FXSAVE_SIZE, _HEADER_END = 512, 576
_XSAVE_AREA = 4096


def put_frame(thread: Thread, signal: int, siginfo: bytes, action: Action, saved_mask: int) -> Regs:
    """Put a handler's frame on the program's stack: the registers that the handler starts with.

    GuestFault if the stack cannot take it.
    """
    if not action.flags & SA_RESTORER:
        raise GuestFault
    before, state = thread.get_registers(), thread.signals
    fpu = _fpstate(thread)
    frame, fpstate = _places(before.rsp, len(fpu), action, state.stack)
    registers = [getattr(before, name) for name in _CONTEXT_REGISTERS]
    context = _CONTEXT.pack(
        *registers, layout.USER_CS, 0, 0, layout.USER_SS, state.error, state.trap,
        saved_mask, state.cr2, fpstate, saved_mask,
    )  # fmt: skip
    stack = state.stack
    data = struct.pack("<Q", action.restorer)
    data += _HEAD.pack(_UC_FLAGS, 0, stack.start, _signed(stack.flags), stack.size) + context
    data += siginfo if action.flags & SA_SIGINFO else bytes(SIGINFO_SIZE)
    thread.process.memory.write(frame, data.ljust(fpstate - frame, b"\0") + fpu)
    after = before
    after.rdi, after.rax, after.rdx = signal, 0, frame + 8
    after.rsi = frame + 8 + _UCONTEXT_SIZE
    after.rsp, after.rip = frame, action.handler
    after.rflags &= ~(_DF | _TF | _RF)
    thread.reset_fpu()
    return after


def _signed(flags: int) -> int:
    return flags - (1 << 32) if flags & SS_AUTODISARM else flags


def _places(rsp: int, fpstate_size: int, action: Action, stack: AlternateStack) -> tuple[int, int]:
    """Where frame and floating-point state go (get_sigframe)."""
    is_on_stack = stack.holds(rsp)
    rsp -= RED_ZONE
    if action.flags & SA_ONSTACK and stack.size and not stack.holds(rsp):
        rsp, is_on_stack = stack.start + stack.size, True
    fpstate = rsp - fpstate_size & -64
    frame = (fpstate - FRAME_SIZE & -16) - 8
    if is_on_stack and not stack.start < frame <= stack.start + stack.size:
        raise GuestFault
    return frame, fpstate


def _fpstate(thread: Thread) -> bytes:
    state = thread.process.machine.extended_state
    area = bytearray(thread.vcpu.get_xsave()[: state.size])
    _FPX.pack_into(
        area, _SOFTWARE_BYTES, _MAGIC1, state.size + _MAGIC2_SIZE, state.xcr0, state.size
    )
    # XSTATE_BV: all parts are there to be read, those in their initial state too; KVM may name
    # others that the program has not.
    struct.pack_into("<8Q", area, _FXSAVE_SIZE, state.xcr0, 0, 0, 0, 0, 0, 0, 0)
    return bytes(area) + struct.pack("<I", _MAGIC2)


def take_frame(thread: Thread) -> tuple[Regs, int, AlternateStack]:
    """rt_sigreturn: the registers, the mask and the alternate stack of the frame that the program
    returns through; its floating-point state is set.  GuestFault if it is not a frame."""
    memory, regs = thread.process.memory, thread.get_registers()
    data = memory.read(regs.rsp, _UCONTEXT_SIZE)
    _, _, start, flags, size = _HEAD.unpack_from(data)
    *registers, _, _, _, _, _, _, _, _, fpstate, mask = _CONTEXT.unpack_from(data, _HEAD.size)
    rflags = regs.rflags & ~_USER_FLAGS
    for name, word in zip(_CONTEXT_REGISTERS, registers, strict=True):
        setattr(regs, name, word)
    regs.rflags = rflags | regs.rflags & _USER_FLAGS
    _restore_fpstate(thread, fpstate)
    return regs, mask, AlternateStack(start, flags & 0xFFFFFFFF, size)


def _restore_fpstate(thread: Thread, fpstate: int) -> None:
    if not fpstate:
        thread.reset_fpu()
        return
    if fpstate % 64:
        raise GuestFault
    memory, state = thread.process.memory, thread.process.machine.extended_state
    area = bytearray(memory.read(fpstate, _FXSAVE_SIZE))
    magic, extended, _, size = _FPX.unpack_from(area, _SOFTWARE_BYTES)
    present, parts = X87_AND_SSE.xcr0, b""
    if magic == _MAGIC1 and _HEADER_END <= size <= state.size and size <= extended:
        whole = memory.read(fpstate, size + _MAGIC2_SIZE)
        if whole[size:] == struct.pack("<I", _MAGIC2):
            present, *reserved = struct.unpack_from("<8Q", whole, _FXSAVE_SIZE)
            if any(reserved) or present & ~state.xcr0:
                raise GuestFault
            parts = whole[_HEADER_END:size]
    area[_SOFTWARE_BYTES:] = bytes(_FXSAVE_SIZE - _SOFTWARE_BYTES)
    area += present.to_bytes(_HEADER_END - _FXSAVE_SIZE, "little") + parts
    try:
        thread.vcpu.set_xsave(bytes(area.ljust(_XSAVE_AREA, b"\0")))
    except OSError as error:  # reserved bits of MXCSR
        if error.errno != errno.EINVAL:
            raise
        raise GuestFault from None
