"""Programs that are busy on purpose: compressors with threads, a benchmark, and stress-ng, whose
--lockbus takes split locks for a living."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.programs.material import write_material
from tests.programs.traced import Laboratory, need

LINE = 64


@pytest.fixture
def laboratory(tmp_path: Path) -> Laboratory:
    return Laboratory(tmp_path, write_material)


def test_xz_with_two_threads_there_and_back(laboratory: Laboratory) -> None:
    need("xz", "sh")
    there = ["xz", "-T2", "-1", "--block-size=40KiB", "--keep", "words"]
    got, _ = laboratory.check(*there)
    assert got.files["words.xz"][1].startswith(b"\xfd7zXZ")
    assert len(got.files["words.xz"][1]) < len(got.files["words"][1])
    back = "xz -T2 -1 --block-size=40KiB bytes && xz -T2 -d -c bytes.xz"
    got, _ = laboratory.check("sh", "-c", back)
    assert "bytes" not in got.files and "bytes.xz" in got.files


def test_a_sort_with_two_threads(laboratory: Laboratory) -> None:
    """sort starts threads from 128 Ki lines on."""
    lines = "".join(f"{number * 7919 % 1000003}\n" for number in range(150_000)).encode()
    got, _ = laboratory.check("sort", "--parallel=2", stdin=lines)
    assert got.stdout.count(b"\n") == 150_000


def test_openssl_speed_prints_its_table(laboratory: Laboratory) -> None:
    """Its numbers are its own: what it counts is how much it got done before an alarm."""
    need("openssl")
    ran, report = laboratory.traced(
        "openssl", "speed", "-seconds", "1", "-elapsed", "-bytes", "1024", "sha256"
    )
    assert ran.status == 0
    (row,) = re.findall(rb"^sha256 +(\d+\.\d+)k$", ran.stdout, re.MULTILINE)
    assert float(row) > 0
    assert re.search(rb"Doing sha256 for 1s on 1024 size blocks: \d+ sha256's in", ran.stderr)
    assert report["bus_locks"] == 0


def _bogo_operations(output: bytes) -> int:
    found = re.search(rb"metrc?:? *\[\d+\] lockbus +(\d+) ", output)
    assert found, output.decode()
    return int(found.group(1))


@pytest.mark.parametrize("policy", ["off", "warn"])
def test_the_split_locks_of_stress_ng_are_counted(policy: str, laboratory: Laboratory) -> None:
    """Each of its rounds executes every locked instruction of its loop once at each of three
    places: one within a line, one across a page's end and one across a line's end."""
    need("stress-ng")
    command = ["stress-ng", "--lockbus", "1", "--lockbus-ops", "20", "--metrics", "-t", "200"]
    ran, report = laboratory.traced(*command, options=["--policy", policy])
    assert ran.status == 0, ran.stderr.decode()
    rounds = _bogo_operations(ran.stdout + ran.stderr)
    assert rounds == 20
    sites = report["sites"]
    assert {site["count"] for site in sites} == {rounds}
    assert report["bus_locks"] == rounds * len(sites)
    at_page_end = [site for site in sites if site["linear"] % 4096 == 4094]
    at_line_end = [site for site in sites if site["linear"] % 4096 == LINE - 2]
    assert len(at_page_end) == len(at_line_end) == len(sites) // 2 > 0
    for site in sites:
        assert (site["cause"], site["size"], site["split"]) == ("split", 4, [2, 2])
        assert site["instruction"].startswith("lock ")
        assert site["module"].endswith("/stress-ng")
    lines = ran.stderr.count(b"took a bus_lock trap")  # the kernel's own, so limited as there
    assert 0 < lines <= report["bus_locks"] if policy == "warn" else lines == 0
