"""`python -m benchmarks`: every table, or those named (speed, starting, locks, detection,
translation, exits, computing, together); `--rounds N` for more runs a median."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import costs, hypervisor, speed
from benchmarks.table import Table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, rounds = Path(name), chosen.rounds
        tables: dict[str, Callable[[], Table]] = {
            "speed": lambda: speed.programs(folder, rounds),
            "starting": lambda: costs.starting(rounds),
            "locks": lambda: costs.bus_locks(folder),
            "detection": lambda: costs.detection(rounds),
            "translation": costs.translation,
            "exits": lambda: hypervisor.exits(rounds),
            "computing": lambda: hypervisor.computing(rounds),
            "together": lambda: hypervisor.together(rounds),
        }
        unknown = set(chosen.tables) - set(tables)
        if unknown:
            parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(tables)}")
        for key in chosen.tables or tables:
            print(tables[key]().text(), flush=True)


main()
