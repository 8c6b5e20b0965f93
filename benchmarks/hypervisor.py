"""The hypervisor: exits a second on both vendors, computing in a guest, two vCPUs on two cores.

What is compared is CPU time of the threads that run the guest, so that other work on the machine
does not count; times by the clock stand beside it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple, Protocol

from benchmarks.guests import Bare, Guest, Image
from benchmarks.table import Table

VENDORS = {"intel": "sapphire-rapids", "amd": "zen5"}
_FEW, _MANY = 1_000, 41_000
_WORK = 30_000_000  # iterations of a loop that only computes
_RATE = 1000  # timer interrupts a second


class Cost(NamedTuple):
    """Seconds that a piece of work took: of CPU time, and by the clock."""

    cpu: float
    clock: float


class Job(Protocol):
    """What can be run once."""

    def run(self) -> None: ...

    def close(self) -> None: ...


def _cost(job: Job) -> Cost:
    """Nothing else runs in this process, so its CPU time is the guest's."""
    cpu, clock = time.process_time(), time.perf_counter()
    job.run()
    cost = Cost(time.process_time() - cpu, time.perf_counter() - clock)
    job.close()
    return cost


# -- exits -----------------------------------------------------------------------------------------


def exits(rounds: int) -> Table:
    """What leaves a guest and comes back to it: the difference of a long and a short run."""
    table = Table(
        "VM exits a second (best of the rounds)",
        ("what", "by CPU time", "by the clock", "goal"),
    )
    kinds: tuple[tuple[str, Callable[[str, int], Job], str], ...] = (
        ("CPUID, done by the hypervisor", _cpuid, "30,000"),
        ("bus-lock #DB, given to the guest", _locks, "20,000"),
        ("port access, done by a device", _ports, "30,000"),
    )
    for what, make, goal in kinds:
        for vendor, model in VENDORS.items():
            cpu, clock = zip(*(_rates(make, model) for _ in range(rounds)), strict=True)
            table.row(f"{what}, {vendor}", f"{max(cpu):,.0f}", f"{max(clock):,.0f}", f">= {goal}")
    return table


def _rates(make: Callable[[str, int], Job], model: str) -> tuple[float, float]:
    few, many = _cost(make(model, _FEW)), _cost(make(model, _MANY))
    more = _MANY - _FEW
    return more / (many.cpu - few.cpu), more / (many.clock - few.clock)


def _cpuid(model: str, count: int) -> Job:
    return Guest(model, "IDENTIFY", count)


def _locks(model: str, count: int) -> Job:
    return _Locking(model, "SPLIT", count)


class _Locking(Guest):
    def close(self) -> None:
        assert self.handled == self.count, f"{self.count} bus locks, {self.handled} handled"
        super().close()


def _ports(model: str, count: int) -> Job:
    return Image(model, "-DPORTS", f"-DCOUNT={count}")


# -- computing -------------------------------------------------------------------------------------


def computing(rounds: int) -> Table:
    """The same loop on the bare processor and in guests, in turn."""
    table = Table(
        "Computing in a guest (CPU seconds, median)",
        ("where", "bare processor", "guest", "ratio", "goal"),
    )
    for vendor, model in VENDORS.items():
        ways = (_on(Bare, model, _WORK), _on(Guest, model, "COMPUTE", _WORK))
        table.row(f"64-bit, nested paging, {vendor}", *_ratio(ways, rounds), "<= 1.05x")
    model, count = VENDORS["intel"], f"-DCOUNT={_WORK}"
    ways = (_on(Bare, model, _WORK, 32), _on(Image, model, f"-DRATE={_RATE}", count))
    table.row(f"32-bit, CR4 = 0, timer at {_RATE} Hz", *_ratio(ways, rounds), "-")
    return table


def _on(kind: Callable[..., Job], *words: object) -> Callable[[], Job]:
    return lambda: kind(*words)


def _ratio(ways: tuple[Callable[[], Job], ...], rounds: int) -> tuple[str, str, str]:
    times = [[_cost(way()).cpu for way in ways] for _ in range(rounds + 1)][1:]
    bare, guest = (median(column) for column in zip(*times, strict=True))
    return f"{bare:.2f}", f"{guest:.2f}", f"{guest / bare:.2f}x"


# -- two processors --------------------------------------------------------------------------------


def together(rounds: int) -> Table:
    """Two vCPUs of one VM, each on a thread of its own and with the whole of the work, against
    one."""
    table = Table(
        "Two vCPUs, each with the work of one (best of the rounds; the second figure leaves out "
        "the time that a thread waited for a core)",
        ("vendor", "one", "two", "speed-up by the clock", "with cores of their own", "goal"),
    )
    for vendor, model in VENDORS.items():
        _together(model, 1)  # compiles what there is to compile
        runs = [(_together(model, 1), _together(model, 2)) for _ in range(rounds)]
        one, two = (min(cost.clock for cost in column) for column in zip(*runs, strict=True))
        alone, both = (min(cost.cpu for cost in column) for column in zip(*runs, strict=True))
        table.row(
            vendor, f"{one:.2f} s", f"{two:.2f} s",
            f"{2 * one / two:.2f}x", f"{2 * alone / both:.2f}x", ">= 1.8x",
        )  # fmt: skip
    return table


def _together(model: str, vcpus: int) -> Cost:
    """From the first thread's start to the last one's end; instead of CPU time, the longest time
    of a thread without its waiting for a core, but with all other waiting."""
    guest = Guest(model, "COMPUTE", 2 * _WORK, vcpus)
    times: list[float] = []

    def live(number: int) -> None:
        clock, waited = time.perf_counter(), _waited()
        guest.run(number)
        times.append(time.perf_counter() - clock - (_waited() - waited))

    threads = [threading.Thread(target=live, args=(i,)) for i in range(vcpus)]
    clock = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clock = time.perf_counter() - clock
    guest.close()
    return Cost(max(times), clock)


def _waited() -> float:
    """Seconds that this thread was ready to run and had no core, as far as the kernel tells."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0
