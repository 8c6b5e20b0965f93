"""Sites merged over processes, and what a reader must be told."""

from __future__ import annotations

import pytest

from tests.report.written import END, MAP, SITE, counts, exited, start, summary


def of_child(record: dict, pid: int) -> dict:
    return {**record, "pid": pid}


def test_the_same_code_in_two_processes_is_one_site(tmp_path):
    moved = {**SITE, "pid": 11, "tid": 11, "rip": 0x501000, "next_rip": 0x501004, "time": 0.75}
    elsewhere = {**MAP, "pid": 11, "start": 0x501000, "end": 0x502000, "bias": 0x500000}
    found = summary(
        tmp_path, start(), start(11, 10), MAP, SITE, elsewhere, moved,
        counts(5), counts(7, pid=11), exited(11), exited(), END,
    )  # fmt: skip
    (site,) = found.sites
    assert site.count == found.total == 12
    assert site.pids == [10, 11]
    assert site.threads == {10: 5, 11: 7}
    assert (site.first_time, site.last_time) == (0.5, 1.5)
    assert site["rip"] == 0x401000  # the first one's


@pytest.mark.parametrize(
    "change", [{"outcome": "none"}, {"size": 8}, {"cpl": 0}, {"rip": 0x401008}]
)
def test_what_differs_stays_apart(tmp_path, change):
    found = summary(tmp_path, start(), MAP, SITE, {**SITE, "site": 2, **change}, END)
    assert len(found.sites) == 2


def test_the_most_frequent_comes_first_then_the_earliest(tmp_path):
    sites = [{**SITE, "site": n, "rip": 0x401000 + n, "time": 1.0 - n / 10} for n in (1, 2, 3)]
    found = summary(tmp_path, start(), MAP, *sites, counts(5, 1), counts(9, 2), counts(5, 3), END)
    assert [site["rip"] & 15 for site in found.sites] == [2, 3, 1]


def test_later_counts_replace_earlier_ones_and_may_stand_before_their_site(tmp_path):
    found = summary(tmp_path, start(), counts(3), MAP, SITE, counts(8), END)
    assert found.total == 8


def test_a_site_whose_counts_were_lost_happened_at_least_once(tmp_path):
    assert summary(tmp_path, start(), MAP, SITE).total == 1


def test_bytes_on_both_lines(tmp_path):
    for linear, size, split in (
        (0x60003E, 4, (2, 2)),
        (0x60003F, 2, (1, 1)),
        (0x600000, 8, (8, 0)),
    ):
        found = summary(tmp_path, start(), MAP, {**SITE, "linear": linear, "size": size}, END)
        assert found.sites[0].split == split


def test_module_offsets_are_link_time_addresses(tmp_path):
    (site,) = summary(tmp_path, start(), MAP, SITE, END).sites
    assert (site.where.module, site.where.module_offset) == ("/no/such/program", 0x1000)
    assert [frame.where.module_offset for frame in site.stack] == [0x1000, 0x1234]


def test_notes_name_what_limits_the_report(tmp_path):
    found = summary(
        tmp_path, start(), start(11, 10), MAP, SITE, {"record": "event_limit", "limit": 1000},
        {"record": "site", "pid": 10}, {**SITE, "site": 2, "problems": ["stack: LookupError: x"]},
        END,
    )  # fmt: skip
    assert found.notes == [
        "Of single events, the first 1,000 of each process were kept; counts are exact.",
        "Killed, or still running when the program ended: process 11.",
        "1 damaged line of the trace was passed over.",
        "Not everything could be recorded: stack: LookupError: x.",
    ]


def test_a_trace_without_end_says_so_and_takes_the_first_process_status(tmp_path):
    found = summary(tmp_path, start(), exited(code=7))
    assert found.trace.exit_status == 7
    assert found.notes == ["The trace has no end: the program still runs, or Trapline was stopped."]


def test_records_of_a_later_version_are_passed_over(tmp_path):
    found = summary(tmp_path, start(), {"record": "weather", "pid": 10}, MAP, SITE, END)
    assert found.total == 1
    assert found.notes == []
