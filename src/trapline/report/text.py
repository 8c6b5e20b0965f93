"""The report for a person: one block a site, the most frequent first."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import TextIO

from rich.console import Console
from rich.text import Text

from trapline.report.advice import advise
from trapline.report.excerpt import find_excerpt
from trapline.report.json import spaced
from trapline.report.others import caller_rows, is_one_place, memory_rows
from trapline.report.picture import ASCII, UNICODE, draw
from trapline.report.summary import Frame, Missing, Site, Summary
from trapline.report.words import plain, plural
from trapline.trace import Location

TOP = 10
BRIEF = 20
FRAMES = 8
PAGE = 4096
COLUMNS = 85  # of running text, beside the labels
SIGNALLED = {
    "db": "#DB, a trap after the instruction",
    "none": "not signalled",
    "vm_exit": "bus-lock VM exit",
    "ac": "#AC, the access was refused",
}
CAUSES = {"split": "split lock", "uncached": "uncached lock"}


def print_text(summary: Summary, stream: TextIO, top: int = TOP) -> None:
    """Print the report; `top` sites in full (0: all), the others in one line each."""
    console = _Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)
    is_unicode = "utf" in (getattr(stream, "encoding", None) or "").lower()
    writer = _Writer(console, is_unicode, summary)
    writer.heading(summary)
    shown = summary.sites if top == 0 else summary.sites[:top]
    for number, site in enumerate(shown, 1):
        writer.site(number, site)
    writer.others(len(shown), summary.sites[len(shown) :])
    for missing in summary.missing:
        writer.missing(missing)
    for illegal in summary.illegal:
        writer.illegal(illegal)
    for note in summary.notes:
        console.print(Text(plain(f"note: {note}"), "dim"))


class _Console(Console):
    """Leaves it to the caller what a reader's going away means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Writer:
    def __init__(self, console: Console, is_unicode: bool, summary: Summary) -> None:
        self._console, self._names = console, summary.trace.thread_names
        self._is_guest = "guest" in summary.trace.header  # an image on a machine, no process
        self._strokes = UNICODE if is_unicode else ASCII
        self._arrow, self._bar = ("▶", "│") if is_unicode else (">", "|")

    def heading(self, summary: Summary) -> None:
        trace = summary.trace
        sites = len(summary.sites)
        counted = f"{plural(summary.total, 'bus lock')} at {plural(sites, 'site')}"
        line = Text("trapline: ", "dim")
        none = "no bus locks" if trace.is_complete else "no bus locks so far"
        line.append(counted if sites else none, "bold red" if sites else "bold green")
        if trace.program:
            line.append(f" in {plain(' '.join(trace.program))}")
        facts = ", ".join(_facts(summary))
        line.append(f"  ({facts})" if facts else "", "dim")
        self._console.print(line)

    def site(self, number: int, site: Site) -> None:
        """The block of one site."""
        kind = CAUSES.get(site["cause"], site["cause"])
        head = Text(f"\n{number}. ", "bold")
        head.append(plural(site.count, kind), "bold red")
        head.append(" in ")
        head.append_text(place_name(site.where))
        self._console.print(head)
        self._excerpt(site)
        for label, text in self._rows(site):
            line = Text(f"   {label:<12}", "dim")
            self._console.print(line.append_text(text))

    def others(self, shown: int, sites: list[Site]) -> None:
        """What is not shown in full, a line each."""
        if sites:
            self._console.print()
        for number, site in enumerate(sites[:BRIEF], shown + 1):
            kind = CAUSES.get(site["cause"], site["cause"])
            line = Text(f"{number}. ", "bold").append(plural(site.count, kind))
            line.append(" in ").append_text(place_name(site.where))
            self._console.print(line.append(f"  {plain(site['instruction'] or '')}", "dim"))
        rest = sites[BRIEF:]
        if rest:
            count = plural(sum(site.count for site in rest), "bus lock")
            self._console.print(f"and {count} at {plural(len(rest), 'more site')}")
        if sites:
            self._console.print(Text("(--top 0 shows every site in full)", "dim"))

    def missing(self, missing: Missing) -> None:
        """An instruction that Trapline answered with #UD because it does not know it."""
        line = Text("\nnot implemented: ", "bold yellow")
        line.append(f"{plain(missing.text)}  ({spaced(missing.code)}) at {missing.rip:#x}, in ")
        line.append_text(place_name(missing.where))
        self._console.print(line.append("; the program got #UD", "dim"))

    def illegal(self, illegal: Missing) -> None:
        """Bytes that are #UD on every processor."""
        line = Text("\nillegal: ", "bold yellow")
        line.append(f"{spaced(illegal.code)} at {illegal.rip:#x}, in ")
        line.append_text(place_name(illegal.where))
        self._console.print(line.append("; #UD, as on every processor", "dim"))

    def _excerpt(self, site: Site) -> None:
        excerpt = find_excerpt(site.where)
        if excerpt is None:
            return
        width = len(str(excerpt.lines[-1][0]))
        for number, source in excerpt.lines:
            is_meant = number == excerpt.line
            mark = self._arrow if is_meant else " "
            line = Text(f"   {mark} {number:>{width}} {self._bar} ", "red" if is_meant else "dim")
            self._console.print(line.append(plain(source), "bold" if is_meant else "dim"))
        if excerpt.is_newer:
            self._console.print(Text("   (the source is newer than the program)", "yellow"))

    def _rows(self, site: Site) -> Iterator[tuple[str, Text]]:
        culprit = Text(f"{site['rip']:#x}  ")
        culprit.append(plain(site["instruction"] or "unknown instruction"), "bold cyan")
        culprit.append(f"   {spaced(site['code']) or ''}", "dim")
        if site.where.module_offset is not None and site.where.module is not None:
            name = plain(site.where.module.rsplit("/", 1)[-1])
            culprit.append(f"   {name}+{site.where.module_offset:#x}", "dim")
        yield "culprit", culprit
        if site["outcome"] != "none":
            yield "reported", _reported(site)
        if site["operand"]:
            yield "operand", Text(plain(site["operand"]))
        yield "data", _data(site)
        for line in draw(site["linear"], site["size"], self._strokes):
            yield "", _coloured(line, self._strokes.operand)
        for number, text in enumerate(memory_rows(site)):
            yield "" if number else "memory", text
        yield "who", _who(site, self._names, self._is_guest)
        if site.count > 1:
            yield "when", Text(f"from {site.first_time:.3f} s to {site.last_time:.3f} s")
        yield from _callers(site)
        yield from _labelled_once(
            caller_rows(site, lambda frame: place_name(frame.where, is_brief=True))
        )
        advice = advise(site) if is_one_place(site) else f"Of the first: {advise(site)}"
        for number, line in enumerate(textwrap.wrap(plain(advice), COLUMNS)):
            yield "" if number else "fix", Text(line, "green")


def place_name(where: Location, *, is_brief: bool = False) -> Text:
    """Function and line, or the next best that is known."""
    file = where.module.rsplit("/", 1)[-1] if where.module is not None else ""
    if where.function is not None:
        name = Text(plain(where.function), "bold")
    elif file and where.module_offset is not None:
        name = Text(plain(f"{file}+{where.module_offset:#x}"), "bold")
    else:
        name = Text("an unknown function")
    if where.file is not None:
        return name.append(" at ", "dim").append(f"{plain(where.file)}:{where.line or '?'}")
    if file and not (is_brief and where.function is None and where.module_offset is not None):
        name.append(" of ", "dim").append(plain(file if is_brief else where.module or ""))
    return name


def _facts(summary: Summary) -> Iterator[str]:
    trace = summary.trace
    if trace.exit_signal is not None:
        yield f"killed by signal {trace.exit_signal}"
    elif trace.exit_status is not None:
        yield f"exit status {trace.exit_status}"
    if len(trace.pids) > 1:
        yield f"{len(trace.pids)} processes"


def _reported(site: Site) -> Text:
    if site["outcome"] == "ac":
        return Text(f"{site['rip']:#x}  the culprit itself, as a fault does", "dim")
    return Text(f"{site['next_rip']:#x}  the next instruction, as a trap does", "dim")


def _data(site: Site) -> Text:
    first, second = site.split
    size = f"{site['linear']:#x}, {plural(site['size'], 'byte')}"
    if not second:
        return Text(f"{size}, on one cache line of memory that is not write-back")
    page = ", which is another page" if site["linear"] % PAGE + site["size"] > PAGE else ""
    return Text(f"{size}: {first} on one cache line, {second} on the next{page}")


def _who(site: Site, names: dict[int, str], is_guest: bool) -> Text:
    """Threads, by name where they have one of their own, processes, privilege, and outcome."""
    signalled = SIGNALLED.get(site["outcome"], site["outcome"])
    if is_guest:
        numbers = ", ".join(map(str, sorted(site.threads)))
        return Text(f"virtual processor {numbers}, CPL {site['cpl']}; {signalled}")
    program = site.first.owner.program
    own = plain(program[0].rsplit("/", 1)[-1]) if program else ""
    threads = plural(len(site.threads), "thread")
    if len(site.threads) <= 4:
        threads = "thread " + ", ".join(
            f"{tid} {plain(names[tid])}" if names.get(tid, own[:15]) != own[:15] else str(tid)
            for tid in sorted(site.threads)
        )
    pids = ", ".join(map(str, site.pids[:4])) + ("..." if len(site.pids) > 4 else "")
    process = f"process {pids}" + (f" ({own})" if own else "")
    return Text(f"{threads} of {process}, CPL {site['cpl']}; {signalled}")


def _callers(site: Site) -> Iterator[tuple[str, Text]]:
    """The frames outside the culprit's own."""
    frames: list[Frame] = site.stack or []
    last = ""
    for inner, frame in list(pairwise(frames))[:FRAMES]:
        label = "inlined in" if inner.where.is_inlined else "called by"
        yield label if label != last else "", place_name(frame.where, is_brief=True)
        last = label
    if len(frames) > FRAMES + 1:
        yield "", Text(f"and {plural(len(frames) - FRAMES - 1, 'more frame')}", "dim")


def _labelled_once(rows: Iterator[tuple[str, Text]]) -> Iterator[tuple[str, Text]]:
    last = ""
    for label, text in rows:
        yield label if label != last else "", text
        last = label or last


def _coloured(line: str, operand: str) -> Text:
    text = Text(line)
    text.highlight_regex(f"{operand}+", "bold red")
    return text
