"""Whole JSON may still be damaged: whatever a line says, the report is printed."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.report.written import END, MAP, SITE, counts, exited, start
from trapline.report import print_text, render_json, summarize
from trapline.trace import read_trace

PLACE = {
    "record": "place", "pid": 10, "image": 0, "site": 1, "place": 1, "tid": 10, "linear": 0x60007E,
    "memory": SITE["memory"], "stack": SITE["stack"],
}  # fmt: skip
FRAME = {"cfa": 0x7000, "rsp": 0x6FF0, "rbp": 0x6FF8}
RECORDS: list[dict[str, Any]] = [
    {"trapline_trace": 1, "tool": "test"},
    start(),
    {"record": "exec", "pid": 10, "image": 0, "program": ["./program"], "executable": "/bin/true"},
    {"record": "thread", "pid": 10, "image": 0, "tid": 10, "name": "worker"},
    {**MAP, "path": "/bin/true", "build_id": "00"},
    {**SITE, "problems": ["x"], "memory": {**SITE["memory"], "kind": "stack", "tid": 10, "map": 1,
                                           "fs_base": 0x700000, "before": 1},
     "stack": [{**SITE["stack"][0], **FRAME}]},
    PLACE,
    {"record": "event", "pid": 10, "image": 0, "site": 1, "tid": 10, "time": 1, "linear": 4},
    {"record": "event_limit", "pid": 10, "image": 0, "limit": 1000},
    {"record": "undefined", "pid": 10, "image": 0, "tid": 10, "rip": 0x401010, "code": "62f1",
     "text": "vaddps", "map": 1},
    {**counts(5)},
    exited(),
    END,
]  # fmt: skip
WRONG = st.sampled_from(
    [None, -1, 1 << 70, 1 << 64, 1 << 63, 0, 1.5, 1e400, math.nan, "x", "", "\ud800", "\x00/", True]
    + [[], [None], [[]], [1, 2], {}, {"a": 1}, {"": -1}]
)


def places(found: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a record something can be changed."""
    inner = found.items() if isinstance(found, dict) else enumerate(found)
    for key, one in inner:
        yield *path, key
        if isinstance(one, dict | list):
            yield from places(one, (*path, key))


PLACES = [(n, path) for n, one in enumerate(RECORDS) if n for path in places(one)]


def reported(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    found = summarize(read_trace(str(path)))
    stream = io.StringIO()
    print_text(found, stream, top=0)
    stream.getvalue().encode()
    json.loads(render_json(found))
    return stream.getvalue()


def changed(number: int, path: tuple[Any, ...], wrong: Any, is_gone: bool) -> list[Any]:
    records = copy.deepcopy(RECORDS)
    inside: Any = records[number]
    for key in path[:-1]:
        inside = inside[key]
    if is_gone:
        del inside[path[-1]]
    else:
        inside[path[-1]] = wrong
    return records


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(PLACES), WRONG, st.booleans())
def test_whatever_a_record_says_the_report_is_printed(tmp_path, place, wrong, is_gone):
    assert reported(tmp_path / "trace", changed(*place, wrong, is_gone))


@pytest.mark.parametrize("number", range(1, len(RECORDS)))
def test_the_records_themselves_are_sound(tmp_path, number):
    assert "damaged" not in reported(tmp_path / "trace", RECORDS[: number + 1])


@pytest.mark.parametrize(
    ("record", "path", "wrong"),
    [
        ("start", ("program",), [1]), ("start", ("pid",), "x"), ("map", ("bias",), "x"),
        ("map", ("path",), 5), ("site", ("size",), 0), ("site", ("linear",), None),
        ("site", ("time",), "x"), ("site", ("code",), "f"), ("site", ("problems",), [[]]),
        ("site", ("memory",), {"kind": None}), ("site", ("stack",), [{}]),
        ("counts", ("counts", 0, "threads"), {"x": 1}), ("counts", ("counts", 0, "count"), 1.5),
        ("undefined", ("code",), "xyz"), ("exit", ("signal",), "x"), ("end", ("exit_status",), []),
        ("thread", ("tid",), []), ("event_limit", ("limit",), "x"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_counted_and_passed_over(tmp_path, record, path, wrong):
    number = next(n for n, one in enumerate(RECORDS) if one.get("record") == record)
    shown = reported(tmp_path / "trace", changed(number, path, wrong, False))
    assert "1 damaged line of the trace was passed over." in shown
