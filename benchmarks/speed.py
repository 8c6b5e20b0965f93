"""Programs: native, under qemu-user and under Trapline, in turn."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.measure import build, median, trapline
from benchmarks.table import Table

SCALES = {"integer": "60", "memory": "40", "nbody": "60"}
GOALS = {"integer": "4", "memory": "3", "nbody": "1"}


def programs(folder: Path, rounds: int) -> Table:
    """Seconds and ratios of the three programs."""
    qemu = shutil.which("qemu-x86_64")
    table = Table(
        "Programs (whole process, seconds, median)",
        ("program", "native", "qemu-x86_64", "trapline", "to native", "to qemu", "goal"),
    )
    for name, scale in SCALES.items():
        binary = build(folder, name)
        traced = [*trapline("trace", "--output", "/dev/null", "--"), binary, scale]
        commands = [[binary, scale], traced]
        if qemu:
            commands.append([qemu, binary, scale])
        median(commands, 1)  # fills the cache of compiled handlers
        times = median(commands, rounds)
        native, ours = times[0], times[1]
        other = times[2] if qemu else None
        table.row(
            name, f"{native:.2f}", f"{other:.2f}" if other else "absent", f"{ours:.2f}",
            f"{ours / native:.1f}x", f"{ours / other:.2f}x" if other else "-",
            f"<= {GOALS[name]}x qemu",
        )  # fmt: skip
    return table
