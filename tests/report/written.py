"""Trace files written record by record, as the recorder would, for reports to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trapline.report import Summary, summarize
from trapline.trace import TraceWriter, read_trace

SITE = {
    "record": "site", "pid": 10, "image": 0, "site": 1, "tid": 10, "time": 0.5,
    "rip": 0x401000, "next_rip": 0x401004, "linear": 0x60003E, "physical": 0x3E, "size": 4,
    "cpl": 3, "cause": "split", "outcome": "db", "map": 1, "code": "f00fc107",
    "instruction": "lock xadd [rdi],eax", "operand": "dword ptr [rdi]  rdi=0x60003e",
    "memory": {"kind": "heap", "tid": None, "fs_base": 0, "map": None, "before": None},
    "stack": [
        {"rip": 0x401000, "lookup": 0x401000, "map": 1, "how": "cfi"},
        {"rip": 0x401234, "lookup": 0x401233, "map": 1, "how": "cfi"},
    ],
}  # fmt: skip
MAP = {
    "record": "map", "pid": 10, "image": 0, "map": 1, "start": 0x401000, "end": 0x402000,
    "offset": 0x1000, "path": "/no/such/program", "name": "", "build_id": None, "bias": 0x400000,
}  # fmt: skip
END = {"record": "end", "exit_status": 0, "signal": None}


def start(pid: int = 10, parent: int = 1, program: str = "./program") -> dict[str, Any]:
    return {
        "record": "start", "pid": pid, "image": 0, "time": 0.0, "parent": parent,
        "program": [program, "-x"], "executable": "/no/such/program",
    }  # fmt: skip


def exited(pid: int = 10, code: int = 0) -> dict[str, Any]:
    return {"record": "exit", "pid": pid, "image": 0, "time": 2.0, "code": code, "signal": None}


def counts(count: int, site: int = 1, pid: int = 10, **threads: int) -> dict[str, Any]:
    shares = {name.lstrip("t"): share for name, share in threads.items()} or {str(pid): count}
    one = {"site": site, "count": count, "last": 1.5, "threads": shares, "places": [[0, count]]}
    return {"record": "counts", "pid": pid, "image": 0, "counts": [one]}


def summary(folder: Path, *records: dict[str, Any]) -> Summary:
    """What a trace with these records says."""
    writer = TraceWriter(str(folder / "trace.jsonl"), {"tool": "test"})
    writer.write(*records)
    writer.close()
    return summarize(read_trace(writer.path))
