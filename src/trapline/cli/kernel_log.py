"""The kernel's words about bus locks, with the kernel's limit on how often it says them.

arch/x86/kernel/cpu/bus_lock.c, pr_warn_ratelimited(); lib/ratelimit.c.
"""

from __future__ import annotations

from trapline.process import SharedRate

INTERVAL = 5.0  # DEFAULT_RATELIMIT_INTERVAL
BURST = 10  # DEFAULT_RATELIMIT_BURST


class KernelLog:
    """Says at most ten lines in five seconds, and later how many it kept to itself: one log for
    all processes, as the kernel's is."""

    def __init__(self) -> None:
        self._rate = SharedRate(BURST, INTERVAL)

    def bus_lock(self, name: str, tid: int, rip: int) -> str:
        """What to print for a bus lock: lines, or nothing."""
        turn = self._rate.take()
        if not turn:
            self._rate.refuse()
            return ""
        missed = self._rate.take_refused() if turn == 1 else 0
        suppressed = f"handle_bus_lock: {missed} callbacks suppressed\n" if missed else ""
        return (
            f"{suppressed}x86/split lock detection: #DB: {name}/{tid}"
            f" took a bus_lock trap at address: {rip:#x}\n"
        )
