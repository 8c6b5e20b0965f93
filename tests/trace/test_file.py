"""The trace file survives killed writers, forked writers, full disks, and guests that close it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trapline.trace.file import TraceError, TraceFile, TraceWriter


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "trace.jsonl")


def records(path: str) -> list[dict]:
    return list(TraceFile(path).records())


def test_what_is_written_is_read_back(path):
    writer = TraceWriter(path, {"tool": "test"})
    writer.write({"record": "a", "n": 1}, {"record": "b", "text": "ä\n"})
    writer.close()
    assert TraceFile(path).header == {"trapline_trace": 1, "tool": "test"}
    assert records(path) == [{"record": "a", "n": 1}, {"record": "b", "text": "ä\n"}]


def test_a_record_is_in_the_file_before_write_returns(path):
    writer = TraceWriter(path, {})
    writer.write({"record": "a"})
    assert records(path) == [{"record": "a"}]
    writer.close()


def test_a_cut_off_last_line_is_expected(path):
    writer = TraceWriter(path, {})
    writer.write({"record": "a"}, {"record": "b"})
    writer.close()
    Path(path).write_bytes(Path(path).read_bytes()[:-7])
    trace = TraceFile(path)
    assert list(trace.records()) == [{"record": "a"}]
    assert trace.is_cut_short
    assert trace.damaged_lines == 0


@pytest.mark.parametrize("junk", [b'{"record":', b"\xff\xfe", b"[1,2]", b"null"])
def test_a_damaged_line_inside_is_passed_over_and_counted(path, junk):
    writer = TraceWriter(path, {})
    writer.write({"record": "a"})
    with open(path, "ab") as stream:
        stream.write(junk + b"\n")
    writer.write({"record": "b"})
    writer.close()
    trace = TraceFile(path)
    assert list(trace.records()) == [{"record": "a"}, {"record": "b"}]
    assert trace.damaged_lines == 1


def test_forked_writers_append_whole_lines(path):
    writer = TraceWriter(path, {})
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            writer.forked()
            for number in range(300):
                writer.write({"record": "n", "child": child, "number": number, "pad": "x" * 5000})
            os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    writer.close()
    found = [(record["child"], record["number"]) for record in records(path)]
    assert len(found) == 1200
    for child in range(4):
        assert [number for who, number in found if who == child] == list(range(300))


def test_a_guest_that_closes_or_replaces_the_descriptor_loses_nothing(path, tmp_path):
    writer = TraceWriter(path, {})
    os.close(writer.descriptor)
    writer.write({"record": "after close"})
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    os.dup2(other, writer.descriptor)
    writer.write({"record": "after dup2"})
    writer.close()
    os.close(other)
    assert (tmp_path / "other").read_bytes() == b""
    assert [record["record"] for record in records(path)] == ["after close", "after dup2"]


def test_the_descriptor_keeps_out_of_the_way(path):
    writer = TraceWriter(path, {})
    assert writer.descriptor >= 900
    writer.close()


FULL = """
import resource, signal, sys
from trapline.trace.file import TraceWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = TraceWriter(sys.argv[1], {})
writer.write({"record": "kept"})
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
for number in range(20):
    writer.write({"record": "pending", "number": number})
assert writer.problem, writer.problem
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
writer.write({"record": "last"})
assert writer.problem is None, writer.problem
writer.close()
"""


def test_what_a_full_disk_refused_is_written_when_there_is_room_again(path):
    subprocess.run([sys.executable, "-c", FULL, path], check=True)
    trace = TraceFile(path)
    found = list(trace.records())
    assert found[0] == {"record": "kept"}
    assert [r["number"] for r in found if r["record"] == "pending"] == list(range(20))
    assert found[-1] == {"record": "last"}
    assert trace.damaged_lines == 1  # the line the limit cut in two


def test_dev_full_is_one_plain_problem():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    writer = TraceWriter("/dev/full", {})
    assert writer.problem == "No space left on device"
    writer.close()


def test_a_killed_writer_leaves_what_it_wrote(path):
    pid = os.fork()
    if pid == 0:
        writer = TraceWriter(path, {})
        for number in range(100):
            writer.write({"record": "n", "number": number})
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert [record["number"] for record in records(path)] == list(range(100))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a Trapline trace"),
        (b"hello\n", "is not a Trapline trace"),
        (b"{}\n", "is not a Trapline trace"),
        (b'{"trapline_trace":2}\n', "newer Trapline"),
        (os.urandom(2000), "is not a Trapline trace"),
    ],
)
def test_other_files_are_refused_in_one_sentence(path, content, sentence):
    Path(path).write_bytes(content)
    with pytest.raises(TraceError, match=sentence):
        TraceFile(path)


def test_missing_files_and_directories_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(TraceError, match="No such file"):
        TraceFile(str(tmp_path / "none"))
    with pytest.raises(TraceError, match="is a directory"):
        TraceFile(str(tmp_path))


def test_pending_records_are_bounded(path, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = TraceWriter(path, {})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        for _ in range(30):
            writer.write({"record": "big", "text": "x" * 100_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.write({"record": "last"})
    assert writer.problem is not None  # some were dropped, and it says so
    writer.close()
    found = records(path)
    assert found[-1] == {"record": "last"}
    assert 5 <= len(found) <= 12
    assert json.dumps(found[0])
