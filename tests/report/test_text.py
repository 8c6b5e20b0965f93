"""The report for a person, word for word."""

from __future__ import annotations

import io
import os

import pytest

from tests.report.written import END, MAP, SITE, counts, start, summary
from trapline.report import print_text
from trapline.report.picture import ASCII, UNICODE, draw


class Stream(io.StringIO):
    encoding = "utf-8"


class Terminal(Stream):
    def isatty(self) -> bool:
        return True


def text(found, stream=None, **options) -> str:
    stream = stream or Stream()
    print_text(found, stream, **options)
    return stream.getvalue()


def test_a_whole_report(tmp_path):
    found = summary(tmp_path, start(), MAP, SITE, counts(12345), END)
    assert (
        text(found)
        == """\
trapline: 12,345 bus locks at 1 site in ./program -x  (exit status 0)

1. 12,345 split locks in program+0x1000 of /no/such/program
   culprit     0x401000  lock xadd [rdi],eax   f0 0f c1 07   program+0x1000
   reported    0x401004  the next instruction, as a trap does
   operand     dword ptr [rdi]  rdi=0x60003e
   data        0x60003e, 4 bytes: 2 on one cache line, 2 on the next
                 line 0x600000            line 0x600040
               ┄······················██│██······················┄
   memory      heap
   who         thread 10 of process 10 (program), CPL 3; #DB, a trap after the instruction
   when        from 0.500 s to 1.500 s
   called by   program+0x1234
   fix         Allocators align their blocks, so it is the offset in the block: make the field
               4-byte aligned (no packed struct, alignas(4), or 2 bytes of padding before it).
"""
    )


def test_a_clean_program_takes_one_line(tmp_path):
    found = summary(tmp_path, start(), END)
    assert text(found) == "trapline: no bus locks in ./program -x  (exit status 0)\n"


def test_a_killed_program_is_said_to_be(tmp_path):
    found = summary(tmp_path, start(), {**END, "exit_status": 135, "signal": 7})
    assert "(killed by signal 7)" in text(found)


def test_without_unicode_the_drawing_is_ascii(tmp_path):
    class Plain(Stream):
        encoding = "ANSI_X3.4-1968"

    found = text(summary(tmp_path, start(), MAP, SITE, END), Plain())
    assert found.isascii()
    assert "~......................##|##......................~" in found


def test_many_sites_are_cut_to_the_top(tmp_path):
    sites = [{**SITE, "site": n, "rip": 0x401000 + n} for n in range(1, 41)]
    many = [counts(100 - n, n) for n in range(1, 41)]
    found = summary(tmp_path, start(), MAP, *sites, *many, END)
    shown = text(found, top=2).splitlines()
    assert sum(line.startswith("   culprit") for line in shown) == 2
    assert "3. 97 split locks in program+0x1003 of /no/such/program" in shown[-22]
    rest = sum(100 - n for n in range(23, 41))
    assert shown[-2:] == [
        f"and {rest:,} bus locks at 18 more sites",
        "(--top 0 shows every site in full)",
    ]
    everything = text(found, top=0)
    assert everything.count("   culprit") == 40
    assert "--top" not in everything


@pytest.mark.parametrize("no_color", [None, "1"])
def test_colour_is_for_terminals_without_no_color(tmp_path, monkeypatch, no_color):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    found = summary(tmp_path, start(), MAP, SITE, END)
    coloured = "\x1b[31m" in text(found, Terminal()) or "\x1b[1;31m" in text(found, Terminal())
    assert coloured == (no_color is None)
    assert "\x1b" not in text(found, Stream())


def test_the_source_line_is_shown_with_its_neighbours(tmp_path, monkeypatch):
    from trapline.report import text as module
    from trapline.trace import Location

    source = tmp_path / "program.c"
    source.write_text("int a;\n\n\tlocked(&a);\nint b;\nint c;\n")
    found = summary(tmp_path, start(), MAP, SITE, END)
    module_file = tmp_path / "program"
    module_file.write_text("")
    found.sites[0].where = Location(str(module_file), 1, "run", "program.c", 3)
    shown = text(found)
    assert "1. 1 split lock in run at program.c:3\n" in shown
    assert "     2 │ \n   ▶ 3 │     locked(&a);\n     4 │ int b;\n" in shown
    assert "newer" not in shown
    os.utime(source, (2e9, 2e9))
    assert "(the source is newer than the program)" in text(found)
    assert module


def test_unimplemented_instructions_are_named(tmp_path):
    undefined = {"record": "undefined", "pid": 10, "image": 0, "time": 1, "tid": 10,
                 "rip": 0x401010, "code": "62f1", "text": "vaddps", "map": 1}  # fmt: skip
    shown = text(summary(tmp_path, start(), MAP, undefined, END))
    assert "not implemented: vaddps  (62 f1) at 0x401010, in program+0x1010 of" in shown


@pytest.mark.parametrize(
    ("linear", "size", "drawn"),
    [
        (0x103F, 2, "~.......................#|#.......................~"),
        (0x1039, 8, "~.................#######|#.......................~"),
        (0x103D, 4, "~.....................###|#.......................~"),
        (0x1004, 4, "|....####" + "." * 56 + "|"),
        (0x103C, 4, "|" + "." * 60 + "####|"),
    ],
)
def test_the_drawing_has_a_character_a_byte(linear, size, drawn):
    assert draw(linear, size, ASCII)[-1] == drawn
    heading = draw(linear, size, UNICODE)[0]
    assert "0x1000" in heading and ("0x1040" in heading) == (linear % 64 + size > 64)


def test_threads_with_names_of_their_own_are_named(tmp_path):
    named = [{"record": "thread", "pid": 10, "image": 0, "tid": t, "name": n}
             for t, n in ((10, "program"), (12, "worker-1"))]  # fmt: skip
    found = summary(tmp_path, start(), MAP, SITE, *named, counts(5, t10=2, t12=3), END)
    assert "thread 10, 12 worker-1 of process 10 (program)" in text(found)
    many = counts(50, **{f"t{n}": 1 for n in range(20, 30)})
    assert "10 threads of process 10" in text(summary(tmp_path, start(), MAP, SITE, many, END))


def test_names_cannot_steer_the_terminal(tmp_path):
    evil = "\x1b[31m\r\n\udcff"
    records = [start(program=f"./{evil}"), {**MAP, "path": f"/tmp/{evil}"}, SITE, END]
    shown = text(summary(tmp_path, *records))
    assert "\x1b" not in shown and "\r" not in shown and "\udcff" not in shown
    assert "./?[31m???" in shown


def test_a_crossed_page_is_said(tmp_path):
    crossing = {**SITE, "linear": 0x600FFE}
    assert "2 on the next, which is another page\n" in text(
        summary(tmp_path, start(), MAP, crossing, END)
    )


def several(*shares: list[int], count: int) -> list[dict]:
    """A site of which two more places were told: other data, and another caller."""
    place = {"record": "place", "pid": 10, "image": 0, "site": 1, "tid": 10, "linear": 0x70003E,
             "memory": {**SITE["memory"], "kind": "anonymous"}}  # fmt: skip
    caller = [SITE["stack"][0], {"rip": 0x401334, "lookup": 0x401333, "map": 1}]
    one = {"site": 1, "count": count, "last": 1.5, "threads": {"10": count}, "places": shares}
    return [
        start(), MAP, SITE, {**place, "place": 1, "stack": SITE["stack"]},
        {**place, "place": 2, "linear": 0x60003E, "memory": SITE["memory"], "stack": caller},
        {"record": "counts", "pid": 10, "image": 0, "counts": [one]}, END,
    ]  # fmt: skip


def test_the_first_lock_does_not_stand_for_all(tmp_path):
    shown = text(summary(tmp_path, *several([0, 1], [1, 900], [2, 100], count=1001)))
    assert (
        "   memory      heap: 101 times, the first\n               anonymous mapping: 900 times\n"
    ) in shown
    assert "   called by   program+0x1234\n   also by     program+0x1334: 100 times\n" in shown
    assert "   fix         Of the first: Allocators" in shown
    assert "not" not in shown.split("called by")[1].split("fix")[0]


def test_what_was_only_counted_is_said_to_be(tmp_path):
    shown = text(summary(tmp_path, *several([0, 1], [1, 1], [2, 1], count=1001)))
    assert "               not told apart: 998 more times\n" in shown
    assert "               the callers of 998 bus locks were not looked at\n" in shown


def test_a_trace_that_tells_of_the_first_alone_is_not_believed_to_tell_of_all(tmp_path):
    old = counts(5)
    del old["counts"][0]["places"]
    shown = text(summary(tmp_path, start(), MAP, SITE, old, END))
    assert "   memory      heap: 1 time, the first\n               not told apart: 4 more" in shown


def test_many_places_are_cut(tmp_path):
    places = [
        {"record": "place", "pid": 10, "image": 0, "site": 1, "place": n, "tid": n, "linear": n,
         "memory": {**SITE["memory"], "kind": "stack", "tid": n}}
        for n in range(1, 21)
    ]  # fmt: skip
    one = {"site": 1, "count": 210, "last": 1, "threads": {"10": 210},
           "places": [[n, n] for n in range(21)]}  # fmt: skip
    record = {"record": "counts", "pid": 10, "image": 0, "counts": [one]}
    shown = text(summary(tmp_path, start(), MAP, SITE, *places, record, END))
    assert "stack of thread 20: 20 times" in shown and "stack of thread 13: " not in shown
    assert "and 13 more places: 91 times" in shown


def test_an_illegal_instruction_is_not_called_unimplemented(tmp_path):
    """SDM 2A, "LOCK": on a register it is #UD, on every processor."""
    undefined = {"record": "undefined", "pid": 10, "image": 0, "time": 1, "tid": 10,
                 "rip": 0x401010, "code": "f0ffc0", "text": "", "map": 1}  # fmt: skip
    shown = text(summary(tmp_path, start(), MAP, undefined, END))
    assert "illegal: f0 ff c0 at 0x401010, in program+0x1010 of" in shown
    assert "not implemented" not in shown
