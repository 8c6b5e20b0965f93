"""What an exception of the program becomes: a page filled in, a bus lock counted, or a signal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch.debug import DR6_BS, DR6_BUS_LOCK
from trapline.arch.exception import Vector
from trapline.arch.registers import RFLAGS_IF
from trapline.process import layout
from trapline.process.trouble import SI_KERNEL, Trouble

GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)

if TYPE_CHECKING:
    from trapline.process.thread import Thread

SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV = 4, 5, 7, 8, 11
ILL_ILLOPN = 2
FPE_INTDIV, FPE_INTOVF, FPE_FLTDIV, FPE_FLTOVF, FPE_FLTUND, FPE_FLTRES, FPE_FLTINV = range(1, 8)
BUS_ADRALN, BUS_ADRERR = 1, 2
TRAP_BRKPT, TRAP_TRACE, TRAP_HWBKPT = 1, 2, 4
_DR6_TRAPS = 0xF

# arch/x86/kernel/traps.c: vector -> (signal, si_code); si_addr is RIP only for these two signals.
_SIGNALS = {
    Vector.DE: (SIGFPE, FPE_INTDIV),
    Vector.BP: (SIGTRAP, SI_KERNEL),
    Vector.OF: (SIGSEGV, SI_KERNEL),
    Vector.BR: (SIGSEGV, SI_KERNEL),
    Vector.UD: (SIGILL, ILL_ILLOPN),
    Vector.NM: (SIGSEGV, SI_KERNEL),
    Vector.NP: (SIGBUS, SI_KERNEL),
    Vector.SS: (SIGBUS, SI_KERNEL),
    Vector.GP: (SIGSEGV, SI_KERNEL),
    Vector.TS: (SIGSEGV, SI_KERNEL),
    Vector.AC: (SIGBUS, BUS_ADRALN),
}


def handle_exception(thread: Thread, vector: int) -> None:
    """Deal with the exception that the thread's frame describes."""
    aux, error, rip, cs, rflags, rsp, _ = thread.processor.read_frame()
    if rip == thread.process.machine.monitor.system_call and not rflags & RFLAGS_IF:
        # Some hypervisors without hardware support (PVM) execute the program's SYSCALL without
        # the change to CPL 0, and its first fetch faults.  No program can jump there with IF = 0.
        thread.take_system_call(rsp)
        return
    if cs != layout.USER_CS:
        raise RuntimeError(f"exception {vector} in the monitor at {rip:#x} (error {error:#x})")
    if vector == Vector.PF:
        _page_fault(thread, aux, error)
    elif vector == Vector.DB:
        _debug(thread, aux, rip)
    elif vector == Vector.MF:
        fpu = thread.vcpu.get_fpu()
        code = _float_code(fpu.fsw & ~fpu.fcw)
        thread.process.signals.force(thread, Trouble(SIGFPE, code, rip, vector, error))
    elif vector == Vector.XM:
        mxcsr = thread.vcpu.get_fpu().mxcsr
        code = _float_code(mxcsr & ~(mxcsr >> 7))
        thread.process.signals.force(thread, Trouble(SIGFPE, code, rip, vector, error))
    else:
        signal, code = _SIGNALS.get(Vector(vector), (SIGSEGV, SI_KERNEL))
        linear = rip if signal in (SIGILL, SIGFPE) else 0
        thread.process.signals.force(thread, Trouble(signal, code, linear, vector, error))


def handle_lost_page(thread: Thread, host: int) -> None:
    """A processor in software has touched a page that the host has no longer, and gone on a few
    instructions with an empty one."""
    memory = thread.process.memory
    linear = host - memory.low_base if 0 <= host - memory.low_base < layout.LOW_SIZE else host
    if not memory.lose(linear):
        raise RuntimeError(f"the host has no page at {host:#x}")
    thread.process.signals.force(thread, Trouble(SIGBUS, BUS_ADRERR, linear, Vector.PF, 0, linear))


def guess_lost_page(thread: Thread) -> None:
    """The host has no page where the program was promised one: its file has been cut short.

    KVM does not say where; the register that points at such a page is the best guess there is.
    """
    memory, regs = thread.process.memory, thread.get_registers()
    pointers = [getattr(regs, name) for name in GENERAL] + [regs.rsp, regs.rip]
    lost = [place for place in pointers if memory.is_lost(place)]
    linear = lost[0] if lost else 0
    thread.process.signals.force(thread, Trouble(SIGBUS, BUS_ADRERR, linear, Vector.PF, 0, linear))


def _page_fault(thread: Thread, linear: int, error: int) -> None:
    memory = thread.process.memory
    if memory.is_filled(linear, error):
        thread.needs_flush = True
        return
    fault = memory.fault(linear, error)
    if fault is not None:
        trouble = Trouble(fault.signal, fault.code, linear, Vector.PF, error, linear)
        thread.process.signals.force(thread, trouble)


def _debug(thread: Thread, dr6: int, rip: int) -> None:
    """Bus locks go to the policy, all else is SIGTRAP; both can have come as one #DB."""
    process = thread.process
    if not dr6 & DR6_BUS_LOCK:  # active low
        signal = process.bus_lock_trap(thread, rip)
        if signal:
            process.signals.force(thread, Trouble(signal, BUS_ADRALN, 0, Vector.DB))
            return
        if not dr6 & (DR6_BS | _DR6_TRAPS):
            return
    code = TRAP_TRACE if dr6 & DR6_BS else TRAP_HWBKPT if dr6 & _DR6_TRAPS else TRAP_BRKPT
    process.signals.force(thread, Trouble(SIGTRAP, code, rip, Vector.DB))


def _float_code(raised: int) -> int:
    """si_code for the unmasked exceptions raised, as fpu__exception_code() picks it."""
    for mask, code in (
        (0x01, FPE_FLTINV), (0x04, FPE_FLTDIV), (0x08, FPE_FLTOVF),
        (0x12, FPE_FLTUND), (0x20, FPE_FLTRES),
    ):  # fmt: skip
        if raised & mask:
            return code
    return 0
