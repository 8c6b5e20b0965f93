"""`trapline run --trace`: the bus locks of an image, with what its symbols and lines say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.run import trapline
from tests.machine import guests
from tests.machine.guests import END


def traced(image: Path, *options: Any) -> dict[str, Any]:
    """Run an image with a trace, and give the trace's report."""
    trace = image.with_suffix(".jsonl")
    done = trapline("run", "--trace", trace, *options, image)
    shown = trapline("report", "--format", "json", trace)
    assert (shown.returncode, shown.stderr) == (0, "")
    report: dict[str, Any] = json.loads(shown.stdout)
    assert report["exit_status"] == done.returncode
    assert report["notes"] == []
    return report


def line_of(source: str, text: str) -> int:
    lines = (guests.IMAGES / source).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize("kind", [0, 1], ids=["elf32", "elf64"])
@pytest.mark.parametrize("cpu", ["sapphire-rapids", "zen5"])
def test_culprits_have_function_line_and_variable(tmp_path: Path, kind: int, cpu: str) -> None:
    image = guests.build_long_mode(tmp_path)[kind]
    report = traced(image, "--cpu", cpu, "--append", "some words")
    assert report["program"] == [str(image), "some", "words"]
    kernel, user = report["sites"]
    source = "long_mode.S"
    assert (kernel["function"], kernel["cpl"], kernel["outcome"]) == ("start64", 0, "none")
    assert (user["function"], user["cpl"], user["outcome"]) == ("user", 3, "db")
    assert kernel["line"] == line_of(source, "at CPL 0: silent")
    assert user["line"] == line_of(source, "lock incl aligned") + 1
    for site in (kernel, user):
        assert site["file"].endswith(source)
        assert site["instruction"].startswith("lock inc dword ptr")
        assert site["memory"] == f"global split of {image.name}"
        assert site["split"] == [2, 2]
        assert site["threads"] == [0]


@pytest.mark.parametrize("engine", ["jit", "interp"])
def test_locks_in_32_bit_c_are_counted_exactly(tmp_path: Path, engine: str) -> None:
    image = guests.build32(tmp_path, "protected_locks.c")
    report = traced(image, "--engine", engine)
    assert report["bus_locks"] == 100
    (site,) = report["sites"]
    assert (site["function"], site["count"]) == ("count", 100)
    assert site["line"] == line_of("protected_locks.c", "__sync_fetch_and_add")
    assert "(counters.busy)" in site["memory"]
    assert site["stack"] is None  # the unwinder knows 64-bit code


def test_real_mode_code_is_named_by_image_and_address(tmp_path: Path) -> None:
    image = tmp_path / "guest.bin"
    image.write_bytes(bytes.fromhex("f0 ff 06 3f 60") + END)  # lock inc word [603fh]
    (site,) = traced(image, "--load", "0x28000")["sites"]
    assert (site["culprit_rip"], site["reported_rip"]) == (0x28000, 0x28005)  # CS is 2000h
    assert site["instruction"] == "lock inc word ptr [0x603F]"
    assert (site["module"], site["function"]) == (str(image), None)
    assert site["memory"] == "[memory at 0x603f]"


def test_the_report_speaks_of_processors(tmp_path: Path) -> None:
    image = tmp_path / "guest.bin"
    image.write_bytes(bytes.fromhex("f0 ff 06 3f 60") + END)
    trapline("run", "--trace", tmp_path / "trace", image)
    report = trapline("report", tmp_path / "trace").stdout
    assert "virtual processor 0, CPL 0; not signalled" in report


def test_a_trace_that_cannot_be_written_is_said_before_the_guest_runs(tmp_path: Path) -> None:
    image = tmp_path / "guest.bin"
    image.write_bytes(guests.say(b"hello") + END)
    done = trapline("run", "--trace", tmp_path / "no" / "such", image)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"trapline: cannot write {tmp_path}/no/such: No such file or directory\n"
    done = trapline("run", "--trace", "/dev/full", image)
    assert done.stdout == "hello"
    assert "trapline: cannot write /dev/full: No space left on device" in done.stderr
