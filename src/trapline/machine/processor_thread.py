"""One vCPU's thread: one exit, one arm.

Devices are asked under the board's lock; when they want to be asked again is the run's business.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from trapline.kvm import abi, exits
from trapline.machine import layout
from trapline.machine.board import TIMED_PORTS, Board
from trapline.machine.devices import IoApic
from trapline.machine.ending import Ending, How, ended
from trapline.machine.explain import explain_exit

if TYPE_CHECKING:
    from trapline.machine.run import Runner


class ProcessorThread:
    """Runs the vCPU of this number until the guest ends or the run is stopped."""

    def __init__(self, runner: Runner, board: Board, number: int) -> None:
        self._runner, self._board = runner, board
        self.number = number
        self.vcpu = board.vcpus[number]
        self.bus_lock_exits = 0
        self.exits = 0
        """How often it has come back for something; shows whether it does anything."""
        self.last_exit: exits.Exit | None = None
        self.thread = threading.Thread(target=self._live, name=f"vCPU {number}", daemon=True)

    def _live(self) -> None:
        error: BaseException | None = None
        ending: Ending | None = None
        try:
            ending = self._run()
        except BaseException as caught:  # it is the caller's to handle
            error = caught
        self._runner.ended(ending, error)

    def _run(self) -> Ending | None:
        board, runner, vcpu, clock = self._board, self._runner, self.vcpu, self._board.clock
        is_first = self.number == 0
        while runner.goes_on():
            if is_first:
                self._inject()
            exit = vcpu.run()
            if vcpu.flags & abi.RUN_X86_BUS_LOCK:
                self.bus_lock_exits += 1
            ending = self._answer(exit) or board.ending
            if ending is not None:
                return ending
            if clock() >= runner.next_time:
                runner.look_at_time()
        return None

    def _inject(self) -> None:
        """Give the vCPU the 8259's interrupt, or have it come back when it can take one."""
        pics, vcpu = self._board.pics, self.vcpu
        with self._board.lock:
            if pics.has_interrupt and vcpu.ready_for_interrupt_injection:
                vcpu.interrupt(pics.acknowledge())
            vcpu.request_interrupt_window = self._runner.is_told = pics.has_interrupt

    def _answer(self, exit: exits.Exit) -> Ending | None:
        board = self._board
        match exit:
            case exits.Interrupted() | exits.IrqWindowOpen() | exits.X86BusLock():
                return None
            case exits.Io():
                with board.lock:
                    board.ports.serve(exit)
                if exit.port in TIMED_PORTS:
                    self._runner.look_at_time()
            case exits.Mmio():
                with board.lock:
                    board.device_memory.serve(exit)
                if layout.IO_APIC <= exit.guest_physical < layout.IO_APIC + IoApic.SIZE:
                    self._runner.look_at_time()  # a line may have been unmasked
            case exits.IoapicEoi(vector):
                with board.lock:
                    board.io_apic.end_of_interrupt(vector)
            case exits.Shutdown():
                sentence = "shut down after a triple fault"
                return ended(How.TRIPLE_FAULT, sentence, exit, self.number)
            case _:
                sentence = explain_exit(board, self.vcpu, exit)
                return ended(How.STUCK, sentence, exit, self.number)
        self.last_exit = exit
        self.exits += 1
        self._runner.tell_of_interrupt(self.number)
        return None
