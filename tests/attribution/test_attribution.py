"""C programs with known split locks: exact counts, lines, functions and memory, -O0 to -O3.

The expectation stands in each program, on the line it is about:
`split COUNT FUNCTION: MEMORY`, where MEMORY is how the report's words begin.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parent / "programs"
LEVELS = ["-O0", "-O1", "-O2", "-O3"]
EXPECTED = re.compile(r"split (\d+) (\w+): (.*?) *\*/")


pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")

Place = tuple[str, int]  # file name, line


def expectations(*names: str) -> dict[Place, tuple[int, str, str]]:
    """What the comments in these sources say."""
    found = {}
    for name in names:
        for number, line in enumerate((PROGRAMS / name).read_text().splitlines(), 1):
            match = EXPECTED.search(line)
            if match:
                found[name, number] = int(match.group(1)), match.group(2), match.group(3)
    return found


def compiled(folder: Path, name: str, *options: str) -> Path:
    output = folder / name.split(".")[0]
    subprocess.run(["gcc", "-g", "-pthread", PROGRAMS / name, "-o", output, *options], check=True)
    return output


def traced(folder: Path, *program: str | Path, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """The report of a program that `trapline trace` has run."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "trapline.cli", "trace", "--format", "json"]
    done = subprocess.run(
        [*command, "--report-file", report, *options, "--", *program],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(report.read_text())


def by_place(report: dict[str, Any]) -> Counter[Place]:
    counts: Counter[Place] = Counter()
    for site in report["sites"]:
        counts[Path(site["file"] or "?").name, site["line"]] += site["count"]
    return counts


def check(report: dict[str, Any], *sources: str) -> None:
    """Exactly what is expected, and nothing else."""
    wanted = expectations(*sources)
    assert by_place(report) == {place: count for place, (count, _, _) in wanted.items()}
    assert report["bus_locks"] == sum(count for count, _, _ in wanted.values())
    assert report["unimplemented"] == []
    for site in report["sites"]:
        _, function, memory = wanted[Path(site["file"]).name, site["line"]]
        assert site["function"] == function
        assert site["memory"].startswith(memory)
        assert (site["cause"], site["outcome"], site["cpl"]) == ("split", "db", 3)
        assert site["reported_rip"] == site["culprit_rip"] + len(site["bytes"].split())
        assert site["linear"] % 64 + site["size"] > 64
        assert sum(site["split"]) == site["size"] and min(site["split"]) > 0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "name", ["stack", "heap", "packed", "thread", "child", "handler", "inlined", "every"]
)
def test_counts_lines_functions_and_memory(tmp_path, name, level):
    program = compiled(tmp_path, f"{name}.c", level)
    check(traced(tmp_path, program), f"{name}.c")


@pytest.mark.parametrize("level", LEVELS)
def test_in_a_shared_library(tmp_path, level):
    library = tmp_path / "libsplit.so"
    subprocess.run(
        ["gcc", "-g", "-shared", "-fPIC", level, PROGRAMS / "library.c", "-o", library], check=True
    )
    program = compiled(tmp_path, "shared.c", level, str(library))
    report = traced(tmp_path, program)
    check(report, "shared.c", "library.c")
    (site,) = report["sites"]
    assert site["module"] == str(library)
    assert [frame["function"] for frame in site["stack"][:2]] == ["in_library", "main"]


@pytest.mark.parametrize("options", [("-static",), ("-no-pie",), ("-static-pie",)], ids=" ".join)
def test_however_it_is_linked(tmp_path, options):
    program = compiled(tmp_path, "packed.c", "-O2", *options)
    check(traced(tmp_path, program), "packed.c")


def test_a_stripped_program_keeps_counts_and_offsets_that_addr2line_knows(tmp_path):
    program = compiled(tmp_path, "stack.c", "-O2")
    whole = tmp_path / "whole"
    shutil.copy(program, whole)
    subprocess.run(["strip", "-s", program], check=True)
    report = traced(tmp_path, program)
    ((place, (count, function, _)),) = expectations("stack.c").items()
    assert report["bus_locks"] == count
    for site in report["sites"]:
        assert (site["function"], site["file"], site["line"]) == (None, None, None)
        asked = ["addr2line", "-f", "-e", whole, hex(site["module_offset"])]
        answer = subprocess.run(asked, capture_output=True, text=True).stdout
        assert answer.split()[:2] == [function, f"{PROGRAMS / place[0]}:{place[1]}"]


def test_a_stripped_program_with_its_debug_file_has_lines(tmp_path):
    program = compiled(tmp_path, "inlined.c", "-O2")
    debug = tmp_path / "inlined.debug"
    subprocess.run(["objcopy", "--only-keep-debug", program, debug], check=True)
    subprocess.run(
        ["objcopy", "--strip-all", "--add-gnu-debuglink=inlined.debug", program],
        check=True, cwd=tmp_path,
    )  # fmt: skip
    check(traced(tmp_path, program), "inlined.c")


def test_call_stacks_through_inlined_calls_handlers_and_threads(tmp_path):
    def stack(name: str) -> list[str]:
        report = traced(tmp_path, compiled(tmp_path, f"{name}.c", "-O2"))
        return [frame["function"] for frame in report["sites"][0]["stack"]]

    assert stack("inlined")[:4] == ["innermost", "middle", "outer", "main"]
    in_handler = stack("handler")
    assert in_handler[0] == "on_signal"
    assert in_handler.index("interrupted") < in_handler.index("main")
    assert stack("thread")[:2] == ["worker", "start_thread"]


def test_each_caller_and_each_variable_has_its_own_count(tmp_path):
    (site,) = traced(tmp_path, compiled(tmp_path, "shared_helper.c", "-O1"))["sites"]
    found = [(at["count"], at["memory"], at["stack"][1]["function"]) for at in site["places"]]
    assert found == [
        (1, "global rare_one+0x3e of shared_helper (rare_one.hits)", "rare"),
        (300, "global hot_one+0x3e of shared_helper (hot_one.hits)", "hot"),
    ]
    assert (site["count"], site["unplaced"]) == (301, 0)


def test_what_only_native_code_counted_is_not_given_a_place(tmp_path):
    program = compiled(tmp_path, "shared_helper.c", "-O1")
    (site,) = traced(tmp_path, program, options=("--policy", "off"))["sites"]
    assert site["count"] == 301
    assert site["unplaced"] == 301 - sum(at["count"] for at in site["places"]) > 200


def test_threads_and_processes_are_told_apart(tmp_path):
    report = traced(tmp_path, compiled(tmp_path, "thread.c", "-O1"))
    shared = [site for site in report["sites"] if site["function"] == "worker"]
    assert sum(len(site["threads"]) for site in shared) == 4
    assert {len(site["pids"]) for site in report["sites"]} == {1}
    report = traced(tmp_path, compiled(tmp_path, "child.c", "-O1"))
    assert len({pid for site in report["sites"] for pid in site["pids"]}) == 3


def test_children_may_be_left_alone(tmp_path):
    program = compiled(tmp_path, "child.c", "-O1")
    report = traced(tmp_path, program, options=("--no-follow",))
    assert report["bus_locks"] == 10


@pytest.mark.parametrize("policy", ["off", "ratelimit:1000"])
def test_counts_do_not_depend_on_the_policy(tmp_path, policy):
    program = compiled(tmp_path, "handler.c", "-O2")
    report = traced(tmp_path, program, options=("--policy", policy))
    wanted = {place: count for place, (count, _, _) in expectations("handler.c").items()}
    assert by_place(report) == wanted


def test_both_engines_count_the_same(tmp_path):
    program = compiled(tmp_path, "every.c", "-O2", "-static")
    check(traced(tmp_path, program, options=("--engine", "interp")), "every.c")
