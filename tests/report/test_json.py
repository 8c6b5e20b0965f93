"""The JSON document's shape is a promise."""

from __future__ import annotations

import json

from tests.report.written import END, MAP, SITE, counts, start, summary
from trapline.report import render_json

FIELDS = [
    "count", "cause", "outcome", "cpl", "culprit_rip", "reported_rip", "instruction", "bytes",
    "module", "module_offset", "function", "file", "line", "operand", "linear", "size", "split",
    "memory", "threads", "pids", "first_time", "last_time", "stack",
    "places", "unplaced",
]  # fmt: skip
LOCATION = ["module", "module_offset", "function", "file", "line"]


def document(tmp_path, *records) -> dict:
    return json.loads(render_json(summary(tmp_path, *records)))


def test_a_whole_document(tmp_path):
    found = document(tmp_path, start(), MAP, SITE, counts(5, t10=2, t12=3), END)
    (site,) = found.pop("sites")
    assert found == {
        "version": 1, "program": ["./program", "-x"], "exit_status": 0, "bus_locks": 5,
        "unimplemented": [], "illegal": [], "notes": [],
    }  # fmt: skip
    assert list(site) == FIELDS
    stack = site.pop("stack")
    assert site.pop("places") == [
        {"count": 5, "linear": 0x60003E, "memory": "heap", "stack": stack}
    ]
    assert site == {
        "count": 5, "cause": "split", "outcome": "db", "cpl": 3,
        "culprit_rip": 0x401000, "reported_rip": 0x401004,
        "instruction": "lock xadd [rdi],eax", "bytes": "f0 0f c1 07",
        "module": "/no/such/program", "module_offset": 0x1000,
        "function": None, "file": None, "line": None,
        "operand": "dword ptr [rdi]  rdi=0x60003e", "linear": 0x60003E, "size": 4,
        "split": [2, 2], "memory": "heap", "threads": [10, 12], "pids": [10],
        "first_time": 0.5, "last_time": 1.5, "unplaced": 0,
    }  # fmt: skip
    assert [frame["rip"] for frame in stack] == [0x401000, 0x401234]
    assert all(list(frame) == ["rip", *LOCATION, "inlined"] for frame in stack)


def test_what_is_unknown_is_null_and_never_left_out(tmp_path):
    bare = {name: SITE[name] for name in (
        "record", "pid", "image", "site", "tid", "time", "rip", "next_rip", "linear", "size",
        "cpl", "cause", "outcome",
    )}  # fmt: skip
    found = document(tmp_path, start(), bare)
    (site,) = found["sites"]
    assert list(site) == FIELDS
    unknown = [name for name in FIELDS if site[name] is None]
    assert unknown == ["instruction", "bytes", *LOCATION, "operand", "memory", "stack"]
    assert found["exit_status"] is None


def test_no_bus_locks_is_an_empty_list(tmp_path):
    found = document(tmp_path, start(), END)
    assert (found["bus_locks"], found["sites"]) == (0, [])


def test_unimplemented_instructions_are_listed(tmp_path):
    undefined = {"record": "undefined", "pid": 10, "image": 0, "time": 1, "tid": 10,
                 "rip": 0x401010, "code": "62f1", "text": "(bad)", "map": 1}  # fmt: skip
    (one,) = document(tmp_path, start(), MAP, undefined, END)["unimplemented"]
    assert one["rip"] == 0x401010
    assert (one["instruction"], one["bytes"], one["module_offset"]) == ("(bad)", "62 f1", 0x1010)


def test_what_no_processor_has_is_illegal_and_not_unimplemented(tmp_path):
    undefined = {"record": "undefined", "pid": 10, "image": 0, "time": 1, "tid": 10,
                 "rip": 0x401010, "code": "f0ffc0", "text": "", "map": 1}  # fmt: skip
    found = document(tmp_path, start(), MAP, undefined, END)
    assert found["unimplemented"] == []
    (one,) = found["illegal"]
    assert (one["instruction"], one["bytes"], one["module_offset"]) == (None, "f0 ff c0", 0x1010)
