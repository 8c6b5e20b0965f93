"""Running a guest to its end: threads for its vCPUs, and the clock that devices go by.

The caller's thread keeps the time and hears Ctrl-C.  It also finds out when no vCPU will ever do
anything again, for one that halts does not come back to say so.
"""

from __future__ import annotations

import math
import threading

from trapline.kvm import abi, exits
from trapline.machine.asleep import has_halted, is_asleep
from trapline.machine.board import Board
from trapline.machine.ending import Ending, How, ended
from trapline.machine.explain import explain_halt
from trapline.machine.processor_thread import ProcessorThread

_SECOND = 1_000_000_000
_PATIENCE = 2.0  # seconds that vCPUs have for coming back when they are stopped
_SOON, _LATE = _SECOND // 50, _SECOND // 2  # between two looks at who is asleep
_PARKING = 0.5  # seconds that vCPUs have for coming in for such a look


class Runner:
    """One run of a board's guest."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._threads = [ProcessorThread(self, board, n) for n in range(len(board.vcpus))]
        self._changed = threading.Condition()
        self._alarm: int | None = None  # when devices want to be looked at
        self.next_time: float = 0
        """The same, for the vCPUs."""
        self.is_told = False
        """The first vCPU knows that the 8259 has an interrupt."""
        self._stopping = self._is_over = False
        self._is_census, self._parked = False, 0
        self._period, self._seen = _SOON, 0
        self._ending: Ending | None = None
        self._error: BaseException | None = None

    @property
    def bus_lock_exits(self) -> int:
        """Bus locks that left the guest (KVM_CAP_X86_BUS_LOCK_EXIT)."""
        return sum(one.bus_lock_exits for one in self._threads)

    @property
    def last_exit(self) -> exits.Exit | None:
        """The first vCPU's."""
        return self._threads[0].last_exit

    # -- the caller's thread --------------------------------------------------------------------

    def run(self, timeout: float | None = None) -> Ending:
        """Run the guest to its end, for at most `timeout` seconds, or until Ctrl-C."""
        board, how = self._board, How.TIMEOUT
        end = None if timeout is None else board.clock() + int(timeout * _SECOND)
        try:
            self.look_at_time()
            for one in self._threads:
                one.thread.start()
            self._keep_time(end)
        except KeyboardInterrupt:
            how = How.INTERRUPTED
        self._stop()
        if self._error is not None:
            raise self._error
        if self._ending is not None:
            return self._ending
        sentence = "was stopped from outside" if how is How.INTERRUPTED else "ran out of time"
        has_slept = self._board.vcpu.get_mp_state() == abi.MpState.HALTED
        return ended(how, sentence, exits.Hlt() if has_slept else self.last_exit)

    def _keep_time(self, end: int | None) -> None:
        clock = self._board.clock
        census = clock() + self._period
        while True:
            with self._changed:
                if self._is_over:
                    return
                times = [time for time in (self._alarm, end, census) if time is not None]
                wait = (min(times) - clock()) / _SECOND
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                is_due = self._alarm is not None and clock() >= self._alarm
            if end is not None and clock() >= end:
                return
            if is_due and self.look_at_time(_PARKING):
                self.tell_of_interrupt()
            if clock() >= census:
                if self._is_asleep():
                    return
                census = clock() + self._period

    def _stop(self) -> None:
        """Have the vCPUs come back; one that hangs in a write to a full pipe is left behind."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for vcpu in self._board.vcpus:
            vcpu.kick()
        end = self._board.clock() + int(_PATIENCE * _SECOND)
        for one in self._threads:
            if one.thread.ident is not None:  # Ctrl-C can come before it has started
                one.thread.join(max(0, end - self._board.clock()) / _SECOND)

    # -- who is asleep --------------------------------------------------------------------------

    def _is_asleep(self) -> bool:
        """Whether the guest has come to an end by doing nothing; only looked at closely while no
        vCPU comes back by itself."""
        seen = sum(one.exits for one in self._threads)
        if seen != self._seen:
            self._seen, self._period = seen, _SOON
            return False
        self._period = min(2 * self._period, _LATE)
        with self._changed:
            self._is_census = True
        for vcpu in self._board.vcpus:
            vcpu.kick()
        try:
            with self._changed:
                # Nobody runs while they are looked at, so nobody wakes anybody.
                if self._changed.wait_for(self._all_parked, _PARKING) and not self._is_over:
                    self._ending = self._end_in_sleep()
                    self._is_over = self._ending is not None
                return self._is_over
        finally:
            with self._changed:
                self._is_census = False
                self._changed.notify_all()

    def _all_parked(self) -> bool:
        return self._is_over or self._parked == len(self._threads)

    def _end_in_sleep(self) -> Ending | None:
        board = self._board
        if not all(is_asleep(board, number) for number in range(len(board.vcpus))):
            return None
        halted = next((n for n, vcpu in enumerate(board.vcpus) if has_halted(vcpu)), 0)
        sentence = explain_halt(board, board.vcpus[halted])
        return ended(How.HALTED, sentence, exits.Hlt(), halted)

    # -- the vCPUs' threads ---------------------------------------------------------------------

    def goes_on(self) -> bool:
        """Whether a vCPU is to run; it waits here while all are looked at."""
        if self._is_census:
            with self._changed:
                self._parked += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._is_census or self._stopping)
                self._parked -= 1
        return not self._stopping

    def ended(self, ending: Ending | None, error: BaseException | None) -> None:
        """A vCPU has come to its end, and with it the guest."""
        with self._changed:
            if not self._is_over:
                self._ending, self._error = ending, error
            self._is_over = True
            self._changed.notify_all()

    def look_at_time(self, patience: float = -1) -> bool:
        """Have the devices notice the time, and the clock know when they want to do so again.
        False where the board was not to be had in so many seconds."""
        board = self._board
        if not board.lock.acquire(timeout=patience):
            return False
        try:
            board.tick()
            deadline = board.deadline()
        finally:
            board.lock.release()
        self.next_time = math.inf if deadline is None else deadline
        if deadline != self._alarm:
            with self._changed:
                self._alarm = deadline
                self._changed.notify_all()
        return True

    def tell_of_interrupt(self, by: int = -1) -> None:
        """Have the first vCPU come for the 8259's interrupt, unless it knows or is the one who
        asks."""
        if by == 0 or self.is_told or not self._board.pics.has_interrupt:
            return
        self.is_told = True
        self._board.vcpu.kick()
