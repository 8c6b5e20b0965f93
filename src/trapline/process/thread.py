"""One thread of the program: a vCPU on a host thread, and the loop that runs it.

Knows how the program's registers are held while the monitor is left, and who handles which exit.
"""

from __future__ import annotations

import errno
import struct
import threading
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from trapline.arch.exception import Vector
from trapline.kvm import Regs, exits
from trapline.process import layout
from trapline.process.exceptions import GENERAL, guess_lost_page
from trapline.process.extended_state import X87_AND_SSE
from trapline.process.machine import Processor, cpu_registers_start
from trapline.process.monitor import FLUSH_POP
from trapline.process.native import HostCalls
from trapline.process.signal_entry import ALL, SignalBlock
from trapline.process.signal_state import ThreadSignals, host_mask

if TYPE_CHECKING:
    from trapline.process.process import Process


class Where(Enum):
    """How the program's RIP, RFLAGS and RSP are held while its thread is out of the guest."""

    SYSRET = "rcx, r11 and rsp, as SYSCALL leaves them"
    FRAME = "the frame on the monitor's stack"
    USER = "the vCPU's own registers: it was stopped in the program"


_current = threading.local()

# An XSAVE area: FCW, MXCSR and its mask, XSTATE_BV.
_LEGACY_AND_HEADER = struct.pack("<H22xII480xQ", 0x37F, 0x1F80, 0xFFFF, X87_AND_SSE.xcr0)
_INITIAL_XSAVE = _LEGACY_AND_HEADER.ljust(4096, b"\0")


def current_thread() -> Thread | None:
    """The guest thread that the calling host thread runs."""
    return getattr(_current, "thread", None)


class EndThread(BaseException):
    """Unwinds a thread's loop when the thread or the whole process is to end."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of a program thread's registers."""

    regs: Regs
    fs_base: int
    gs_base: int
    xsave: bytes


class Thread:
    """One guest thread.  All but `kick` belongs to its host thread."""

    def __init__(self, process: Process, processor: Processor) -> None:
        self.process = process
        self.signal_block = SignalBlock()
        self.calls = self.signal_block.calls  # the program's: signals can turn them back
        self.quiet = HostCalls()  # the VMM's on its behalf
        self.signals = ThreadSignals()
        self.use(processor)
        self.host_thread = 0
        self.tid = 0
        self.name = ""
        self.in_guest = False
        self.must_end = False
        self.has_exited = False  # the program's thread has
        self.is_over = False  # nothing more is done on its behalf
        self.needs_flush = True  # the processor may have run another thread before
        self.where = Where.FRAME
        self.call_number = -1  # of the system call being answered; -1 outside of one
        self.stack_pointer = 0  # somewhere in the thread's stack
        self.clear_child_tid = 0
        self.robust_list = 0
        self.robust_list_size = 0
        self.scratch: object = None  # keeps a buffer alive while the host reads it
        self._saved_rax: int | None = None

    def use(self, processor: Processor) -> None:
        """Run on this processor from now on."""
        self.processor = processor
        self.vcpu = processor.vcpu
        self.signal_block.watch(self.vcpu.kick_places)

    # -- registers of the program ---------------------------------------------------------------

    def get_registers(self) -> Regs:
        """A copy of the program's registers, wherever they are held."""
        view = self.vcpu.regs
        regs = Regs(**{name: getattr(view, name) for name in GENERAL})
        if self.where is Where.SYSRET:
            regs.rip, regs.rflags, regs.rsp = view.rcx, view.r11, view.rsp
        elif self.where is Where.FRAME:
            _, _, regs.rip, _, regs.rflags, regs.rsp, _ = self.processor.read_frame()
        else:
            regs.rip, regs.rflags, regs.rsp = view.rip, view.rflags, view.rsp
        return regs

    def set_registers(self, regs: Regs) -> None:
        """Have the program go on with exactly these; RIP and RFLAGS are trusted."""
        view = self.vcpu.regs
        for name in GENERAL:
            setattr(view, name, getattr(regs, name))
        if self.where is Where.USER:
            view.rip, view.rflags, view.rsp = regs.rip, regs.rflags, regs.rsp
        else:
            self.processor.write_frame(regs.rip, regs.rflags, regs.rsp)
            self.where = Where.FRAME

    def snapshot(self) -> Snapshot:
        """What a copy of this thread starts with, in a fork or a clone."""
        vcpu = self.vcpu
        return Snapshot(self.get_registers(), vcpu.fs_base, vcpu.gs_base, vcpu.get_xsave())

    @property
    def rip(self) -> int:
        """The program's RIP."""
        if self.where is Where.SYSRET:
            return self.vcpu.regs.rcx
        if self.where is Where.FRAME:
            return self.processor.read_frame()[2]
        return self.vcpu.regs.rip

    def reset_fpu(self) -> None:
        """Floating point as after FNINIT.  Not by KVM_SET_FPU, which leaves MXCSR as it is."""
        self.vcpu.set_xsave(_INITIAL_XSAVE)

    # -- running --------------------------------------------------------------------------------

    def settle(self) -> None:
        """The calling host thread is this one's."""
        self.host_thread = threading.get_ident()
        self.tid = threading.get_native_id()
        _current.thread = self

    def start(self, start: Snapshot | Regs) -> None:
        """Bring the processor up through the monitor's start, ready to run the program; called on
        the host thread that will run it."""
        regs = start if isinstance(start, Regs) else start.regs
        self.settle()
        self.stack_pointer = regs.rsp
        self.processor.write_frame(regs.rip, regs.rflags, regs.rsp)
        cpu_registers_start(
            self.processor, self.process.machine.monitor.start, self.process.policy.detects
        )
        self.vcpu.set_signal_mask(ALL)
        exit = self.vcpu.run()
        while isinstance(exit, exits.Interrupted):
            exit = self.vcpu.run()
        if not isinstance(exit, exits.Io) or exit.port != layout.PORT_READY:
            raise RuntimeError(f"the monitor did not start: {exit}")
        self.where = Where.FRAME
        self.set_registers(regs)
        if isinstance(start, Snapshot):
            self.vcpu.fs_base, self.vcpu.gs_base = start.fs_base, start.gs_base
            self.vcpu.set_xsave(start.xsave)
        else:
            self.vcpu.fs_base = self.vcpu.gs_base = 0
            self.reset_fpu()

    def run(self) -> None:
        """Run the program's thread until it ends."""
        process = self.process
        world = process.world
        try:
            while True:
                if self.calls.words[0] or self.must_end or process.ending:
                    process.attend(self)
                world.enter(self)
                self._resume()
                exit = self._enter()
                world.leave(self)
                if exit is None:
                    guess_lost_page(self)
                elif type(exit) is exits.Io:
                    self._left_through(exit.port)
                elif type(exit) is exits.Interrupted:
                    self._interrupted()
                else:
                    process.unexpected_exit(self, exit)
        except EndThread:
            pass

    def _enter(self) -> exits.Exit | None:
        """Run the vCPU; None if the host could not reach a page that the tables show."""
        try:
            return self.vcpu.run()
        except OSError as error:
            if error.errno != errno.EFAULT or self.vcpu.regs.rip >= layout.MONITOR:
                raise
            self.where = Where.USER
            return None

    def _resume(self) -> None:
        """Point the vCPU at the way back to the program."""
        regs = self.vcpu.regs
        monitor = self.process.machine.monitor
        self._saved_rax = None
        if self.needs_flush:
            self.needs_flush = False
            if self.where is Where.USER:
                self.vcpu.nmi()
                return
            if self.where is Where.SYSRET:
                self.processor.write_frame(regs.rcx, regs.r11, regs.rsp)
                self.where = Where.FRAME
            self._saved_rax = regs.rax
            regs.rip = monitor.leave_flushed
            regs.rsp = self.processor.frame_linear
        elif self.where is Where.SYSRET:
            regs.rip = monitor.sysret
        elif self.where is Where.FRAME:
            regs.rip = monitor.leave
            regs.rsp = self.processor.frame_linear

    def _left_through(self, port: int) -> None:
        if port == layout.PORT_SYSCALL:
            self.where = Where.SYSRET
            self.process.system_call(self)
        else:
            self.where = Where.FRAME
            self.process.exception(self, port - layout.PORT_VECTOR)

    def take_system_call(self, rsp: int) -> None:
        """A system call whose SYSCALL left RCX and R11 as it should, but not by the usual way."""
        self.vcpu.regs.rsp = rsp
        self.where = Where.SYSRET
        self.process.system_call(self)

    def _interrupted(self) -> None:
        """A kick: find out how the program's registers are held now."""
        rip, monitor = self.vcpu.regs.rip, self.process.machine.monitor
        if rip < layout.MONITOR:
            self.where = Where.USER
            events = self.vcpu.get_vcpu_events()
            if events.exception_injected or events.exception_pending:
                self._finish_exit()  # it belongs to the instruction that the program is at
        elif rip in monitor.returns:
            # On the way back, nothing of the program has run: all is as it was handed over.
            if self._saved_rax is not None:
                self.vcpu.regs.rax = self._saved_rax
        elif monitor.vectors[Vector.NMI] <= rip < monitor.vectors[Vector.NMI + 1]:
            self._leave_flush(rip)
        else:
            # On the way out: the exit that follows is what counts.
            self._finish_exit()

    def _leave_flush(self, rip: int) -> None:
        """A kick in the middle of the flush by NMI: it is begun anew, some other way."""
        view = self.vcpu.regs
        is_saved = 0 < rip - self.process.machine.monitor.vectors[Vector.NMI] <= FLUSH_POP
        rax, back, cs, rflags, rsp, _ = self.processor.read_flush_frame()
        if is_saved:
            view.rax = rax
        self.needs_flush = True
        if cs == layout.USER_CS:
            self.processor.write_frame(back, rflags, rsp)
            self.where = Where.FRAME
        else:
            view.rip, view.rflags, view.rsp = back, rflags, rsp
            self._finish_exit()

    def _finish_exit(self) -> None:
        # Signals that wait would end each run before it began.
        self.vcpu.set_signal_mask(ALL)
        exit = self.vcpu.run()
        while isinstance(exit, exits.Interrupted):
            exit = self.vcpu.run()
        self.vcpu.set_signal_mask(host_mask(self.signals.mask))
        if not isinstance(exit, exits.Io):
            self.process.unexpected_exit(self, exit)
            return
        self._left_through(exit.port)

    def interrupt(self) -> None:
        """From any thread: have this one come out of the guest, or out of a host call, and attend
        to what waits for it."""
        self.calls.words[0] = 1
        self.vcpu.kick()
        self.process.signals.interrupt(self)
