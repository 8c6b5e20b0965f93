"""Running a guest: one exit, one arm; and the clock that brings it back for its interrupts.

The vCPU has a thread of its own; the caller's keeps the time and hears Ctrl-C.
"""

from __future__ import annotations

import math
import threading

from trapline.kvm import abi, exits
from trapline.machine.board import TIMED_PORTS, Board
from trapline.machine.boot import service_call
from trapline.machine.ending import Ending, How, ended

_SECOND = 1_000_000_000
_PATIENCE = 2.0  # seconds that a vCPU has for coming back when it is stopped


class Runner:
    """One run of a board's guest."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._vcpu = board.vcpu
        self.bus_lock_exits = 0
        """Bus locks that left the guest (KVM_CAP_X86_BUS_LOCK_EXIT)."""
        self.last_exit: exits.Exit | None = None
        self._changed = threading.Condition()
        self._alarm: int | None = None  # when the vCPU wants to be kicked
        self._next: float = 0  # the same, for the vCPU itself
        self._stopping = False
        self._ending: Ending | None = None
        self._error: BaseException | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._live, name="vCPU 0", daemon=True)

    # -- the caller's thread --------------------------------------------------------------------

    def run(self, timeout: float | None = None) -> Ending:
        """Run the guest to its end, for at most `timeout` seconds, or until Ctrl-C."""
        board, how = self._board, How.TIMEOUT
        end = None if timeout is None else board.clock() + int(timeout * _SECOND)
        try:
            self._thread.start()
            self._keep_time(end)
        except KeyboardInterrupt:
            how = How.INTERRUPTED
        self._stop()
        if self._error is not None:
            raise self._error
        if self._ending is not None:
            return self._ending
        sentence = "was stopped from outside" if how is How.INTERRUPTED else "ran out of time"
        return ended(how, sentence, self.last_exit)

    def _keep_time(self, end: int | None) -> None:
        while True:
            with self._changed:
                if self._is_over:
                    return
                times = [time for time in (self._alarm, end) if time is not None]
                wait = (min(times) - self._board.clock()) / _SECOND if times else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                if end is not None and self._board.clock() >= end:
                    return
                self._alarm = None
            self._vcpu.kick()

    def _stop(self) -> None:
        """Have the vCPU come back; one that hangs in a write to a full pipe is left behind."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._vcpu.kick()
        if self._thread.ident is not None:  # Ctrl-C can come before it has started
            self._thread.join(_PATIENCE)

    # -- the vCPU's thread ----------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._ending = self._run_vcpu()
        except BaseException as error:  # it is the caller's to handle
            self._error = error
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _run_vcpu(self) -> Ending | None:
        board, vcpu, answer, clock = self._board, self._vcpu, self._answer, self._board.clock
        self._look_at_time()
        while not self._stopping:
            self._inject()
            exit = vcpu.run()
            if vcpu.flags & abi.RUN_X86_BUS_LOCK:
                self.bus_lock_exits += 1
            ending = answer(exit)
            ending = ending or board.ending
            if ending is not None:
                return ending
            if clock() >= self._next:
                self._look_at_time()
        return None

    def _inject(self) -> None:
        """Give the vCPU the interrupt that waits, or have it come back when it can take one."""
        pics, vcpu = self._board.pics, self._vcpu
        if pics.has_interrupt and vcpu.ready_for_interrupt_injection:
            vcpu.interrupt(pics.acknowledge())
        vcpu.request_interrupt_window = pics.has_interrupt

    def _look_at_time(self) -> None:
        """Have the devices notice the time, and the clock know when they want to do so again."""
        self._board.tick()
        deadline = self._board.deadline()
        self._next = math.inf if deadline is None else deadline
        if deadline != self._alarm:
            with self._changed:
                self._alarm = deadline
                self._changed.notify_all()

    def _answer(self, exit: exits.Exit) -> Ending | None:
        match exit:
            case exits.Interrupted() | exits.IrqWindowOpen() | exits.X86BusLock():
                return None
            case exits.Io():
                self.last_exit = exit
                self._board.ports.serve(exit)
                if exit.port in TIMED_PORTS:
                    self._look_at_time()
                return None
            case exits.Hlt():
                self.last_exit = exit
                return self._halt()
            case exits.Mmio():
                self.last_exit = exit
                self._board.device_memory.serve(exit)
                return None
            case exits.Shutdown():
                return ended(How.TRIPLE_FAULT, "shut down after a triple fault", exit)
        return ended(How.STUCK, self._explain(exit), exit)

    def _halt(self) -> Ending | None:
        """Wait for an interrupt, if one can come."""
        board, vcpu = self._board, self._vcpu
        if not vcpu.if_flag:
            sentence = self._explain_service() or "halted with interrupts off"
            return ended(How.HALTED, sentence, self.last_exit)
        while not self._stopping and not board.pics.has_interrupt:
            deadline = board.deadline()
            if deadline is None:
                return ended(How.HALTED, "halted, and nothing can wake it", self.last_exit)
            with self._changed:
                if not self._stopping:
                    self._changed.wait(max(0, deadline - board.clock()) / _SECOND)
            board.tick()
        return None

    def _explain_service(self) -> str:
        """What led to the stub of a vector that the guest has no handler for, if it is in one."""
        sregs, regs = self._vcpu.get_sregs(), self._vcpu.regs
        vector = service_call(sregs.cs.base, regs.rip)
        if vector is None:
            return ""
        frame = self._board.memory.read(sregs.ss.base + (regs.rsp & 0xFFFF), 4)
        ip, cs = frame[:2][::-1].hex(), frame[2:][::-1].hex()
        return f"came to interrupt vector {vector:#x} from {cs}:{ip}; there is no BIOS behind it"

    def _explain(self, exit: exits.Exit) -> str:
        """What the guest did that the hypervisor could not go on with."""
        board, vcpu = self._board, self._vcpu
        sregs, rip = vcpu.get_sregs(), vcpu.regs.rip
        linear = sregs.cs.base + rip & 0xFFFFFFFF if not sregs.cs.l else rip
        code = vcpu.translate(linear)
        if code.valid and not board.memory.has(code.physical_address, 1):
            return f"jumped to {linear:#x}, where there is no memory"
        match exit:
            case exits.InternalError(abi.INTERNAL_ERROR_DELIVERY_EV):
                return "took an exception or interrupt whose handler is in device memory"
            case exits.InternalError(abi.INTERNAL_ERROR_EMULATION):
                return "came to an instruction that the hypervisor cannot do in its place"
            case exits.FailEntry(reason):
                return f"was refused by the processor (VM-entry failure {reason:#x})"
        return "came to what the hypervisor could not go on with"
