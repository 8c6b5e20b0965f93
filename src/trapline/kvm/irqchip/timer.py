"""The local APIC's timer: one-shot, periodic, and by the time-stamp counter.

Its clock runs at 1 GHz before the divider, as KVM's does.  Everything here happens under the
APIC's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trapline.arch.apic import TimerMode, divisor
from trapline.kvm.irqchip.alarm import Alarm, Sleeper

if TYPE_CHECKING:
    from trapline.kvm.irqchip.rate import TscRate

_SHORTEST_PERIOD = 200_000  # KVM's min_timer_period_us: a guest is not to keep the host busy
_FARTHEST = 1 << 62  # nanoseconds; later than any run


class Timer:
    """`tsc` reads the guest's counter; `expired` is told each time."""

    def __init__(
        self,
        alarm: Alarm,
        sleeper: Sleeper,
        rate: TscRate,
        tsc: Callable[[], int],
        expired: Callable[[], None],
    ) -> None:
        self._alarm, self._sleeper, self._rate, self._tsc = alarm, sleeper, rate, tsc
        self._expired = expired
        self.reset()

    def reset(self) -> None:
        self.mode = int(TimerMode.ONE_SHOT)
        self.initial_count = self.divide = 0
        self._stop()

    @property
    def is_running(self) -> bool:
        return self._target is not None

    def _stop(self) -> None:
        self.tsc_deadline = 0
        self._target: int | None = None
        self._alarm.cancel(self._sleeper)

    def set_mode(self, mode: int) -> None:
        """A change to or from the TSC deadline disarms (apic_update_lvtt)."""
        if (mode == TimerMode.TSC_DEADLINE) != (self.mode == TimerMode.TSC_DEADLINE):
            self.initial_count = 0
            self._stop()
        self.mode = mode

    def set_divide(self, divide: int) -> None:
        """What is left of the count goes on at the new pace."""
        left, self.divide = self.current_count(), divide
        if self._target is not None and self.mode != TimerMode.TSC_DEADLINE:
            self._aim(self._alarm.now() + left * divisor(divide))

    def start(self, initial_count: int) -> None:
        """The initial-count register was written; zero stops the timer."""
        if self.mode == TimerMode.TSC_DEADLINE:
            return
        self._stop()
        self.initial_count = initial_count
        if initial_count:
            self._aim(self._alarm.now() + self._period())

    def resume(self, initial_count: int, current_count: int) -> None:
        """KVM_SET_LAPIC (set_target_expiration).

        Nothing says whether a count of zero has interrupted yet: a periodic timer has a period
        before it, a one-shot one interrupts now.  IA32_TSC_DEADLINE is not in the page.
        """
        self.initial_count = initial_count
        if self.mode == TimerMode.TSC_DEADLINE:
            if self.tsc_deadline:
                self._aim_at_deadline()
            return
        self._stop()
        if initial_count:
            period, left = self._period(), current_count * divisor(self.divide)
            if not left and self.mode == TimerMode.PERIODIC:
                left = period
            self._aim(self._alarm.now() + min(left, period))

    def set_deadline(self, tsc: int) -> None:
        """IA32_TSC_DEADLINE was written; zero disarms."""
        if self.mode != TimerMode.TSC_DEADLINE:
            return
        self._stop()
        self.tsc_deadline = tsc
        if tsc:
            self._aim_at_deadline()

    def _aim_at_deadline(self) -> None:
        left = self._rate.nanoseconds(max(0, self.tsc_deadline - self._tsc()))
        self._aim(self._alarm.now() + min(left, _FARTHEST))

    def _aim(self, target: int) -> None:
        self._target = target
        if target <= self._alarm.now():
            self.ring()
        else:
            self._alarm.set(self._sleeper, target)

    def _period(self) -> int:
        period = self.initial_count * divisor(self.divide)
        return max(period, _SHORTEST_PERIOD) if self.mode == TimerMode.PERIODIC else period

    def current_count(self) -> int:
        """What the current-count register reads as (apic_get_tmcct)."""
        if self._target is None or self.mode == TimerMode.TSC_DEADLINE:
            return 0
        left = self._target - self._alarm.now()
        # A periodic timer counts on, whether or not somebody has seen to its tick yet.
        left = left % (self._period() or 1) if self.mode == TimerMode.PERIODIC else max(0, left)
        return left // divisor(self.divide)

    def ring(self) -> None:
        """Time has passed; perhaps not enough, if the timer was set anew meanwhile."""
        target, now = self._target, self._alarm.now()
        if target is None:
            return
        if now < target:
            self._alarm.set(self._sleeper, target)
            return
        match self.mode:
            case TimerMode.PERIODIC:
                # Ticks that nobody was there to see are one.
                period = self._period()
                self._target = target + (1 + (now - target) // period) * period
                self._alarm.set(self._sleeper, self._target)
            case TimerMode.TSC_DEADLINE if self._tsc() < self.tsc_deadline:
                self._aim_at_deadline()
                return
            case _:
                self._target = None
        self._expired()

    def settle(self) -> None:
        """The vCPU has noticed that its deadline has passed (kvm_inject_apic_timer_irqs).

        Until then the VMM reads it, so that who saves the MSR after the page loses nothing.
        """
        if self._target is None:
            self.tsc_deadline = 0
