"""What single things cost: starting, memory, bus locks, detection, translation."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.measure import build, run, trapline
from benchmarks.table import Table

_LOUD, _SILENT = 40_000, 4_000_000


def _report(words: list[str]) -> tuple[float, int]:
    """Seconds of a traced run, and the bus locks it reports."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        one = run(trapline("trace", "--format", "json", "--report-file", file.name, *words))
        if one.status:
            raise SystemExit(one.errors)
        return one.seconds, int(json.loads(Path(file.name).read_text())["bus_locks"])


def starting(rounds: int) -> Table:
    """From nothing to a finished /bin/true."""
    table = Table("Starting", ("what", "measured", "goal"))
    command = trapline("trace", "--", "/bin/true")
    with tempfile.TemporaryDirectory() as empty:
        cold = run(command, {"TRAPLINE_CACHE": empty})
    run(command)
    warm = statistics.median(run(command).seconds for _ in range(rounds))
    peak = run(trapline("trace", "--", "/bin/ls", "/usr/bin")).peak
    table.row("/bin/true, empty cache", f"{cold.seconds:.1f} s", "< 25 s")
    table.row("/bin/true, warm cache", f"{warm:.2f} s", "< 1.5 s")
    table.row("/bin/ls, peak memory", f"{peak / 1e6:.0f} MB", "< 400 MB")
    return table


def bus_locks(folder: Path) -> Table:
    """Bus locks a second: the difference of two runs, so that starting does not count."""
    table = Table("Bus locks", ("what", "measured", "goal"))
    binary = build(folder, "locks")
    for policy, many, goal in (("warn", _LOUD, "20,000"), ("off", _SILENT, "1,000,000")):
        words = ["--policy", policy, "--", binary, "split"]
        _report([*words, "10"])
        few_seconds, few = _report([*words, "10"])
        seconds, count = _report([*words, str(many)])
        assert (few, count) == (10, many), f"{count} bus locks reported, {many} taken"
        rate = (count - few) / (seconds - few_seconds)
        table.row(f"--policy {policy}", f"{rate:,.0f} a second", f">= {goal}")
    return table


def detection(rounds: int) -> Table:
    """Locked instructions within a line, with and without the test for crossing it."""
    from benchmarks.locked_loop import seconds

    ratios = []
    for _ in range(rounds):
        without, with_test = seconds(False), seconds(True)
        ratios.append(with_test / without)
    table = Table("Detection, on locked instructions that do not split",
                  ("what", "measured", "goal"))  # fmt: skip
    cost = (statistics.median(ratios) - 1) * 100
    table.row("cost of the test", f"{cost:+.1f} %", "<= 2 %")
    return table


def translation() -> Table:
    """New guest instructions a second, handlers already compiled."""
    from trapline.processor.jit import CodeCache, Native

    code = Path("/bin/bash").read_bytes()
    start = 0x30000
    warm, cache = CodeCache(), CodeCache()

    def translate(into: CodeCache) -> None:
        at = start
        while into.translated < 40_000 and at < len(code) - 4096:
            block = into.translate(code[at : at + 4096 - at % 4096], at, (0,), (64, 64), Native.ALL)
            at += max(1, block.size)

    translate(warm)
    began = time.perf_counter()
    translate(cache)
    rate = cache.translated / (time.perf_counter() - began)
    table = Table("Translation", ("what", "measured", "goal"))
    table.row("new instructions", f"{rate:,.0f} a second", ">= 40,000")
    return table
