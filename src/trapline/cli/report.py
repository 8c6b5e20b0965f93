"""`trapline report`: prints what a trace file says."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, TextIO

from trapline.cli.failure import Failure
from trapline.trace import TraceError, read_trace

if TYPE_CHECKING:
    from trapline.report import Summary

EPILOG = """\
examples:
  trapline report locks.jsonl                   the ten most frequent sites in full
  trapline report locks.jsonl --top 0 | less    all of them
  trapline report locks.jsonl --format json | jq '.sites[] | {count, function, line}'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.epilog = EPILOG
    parser.add_argument(
        "file", metavar="FILE",
        help="a trace, as `trapline trace --output` writes; - is standard input",
    )  # fmt: skip
    add_report_options(parser)


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """How a report is printed, for all verbs that print one."""
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="default: %(default)s"
    )
    parser.add_argument(
        "--top",
        type=count,
        default=10,
        metavar="N",
        help="sites to show in full, 0 for all (text only; default: %(default)s)",
    )


def count(text: str) -> int:
    """How many of something; 0 may mean all of them."""
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 0")


def run(options: argparse.Namespace) -> int:
    """Print the report of a trace file."""
    if sys.stdout is None:
        raise Failure("cannot write the report: stdout is closed")
    write_report(load(options.file), sys.stdout, options)
    return 0


def load(path: str) -> Summary:
    """The summary of a trace file; a Failure if it is none."""
    from trapline.report import summarize

    try:
        return summarize(read_trace(path))
    except TraceError as error:
        hint = "trapline trace --output FILE -- PROGRAM writes one"
        raise Failure(str(error), hint) from None


def write_report(summary: Summary, stream: TextIO | None, options: argparse.Namespace) -> None:
    """Print a report in the format asked for."""
    # Here, not above: `trace` starts its program first.
    from trapline.report import print_text, render_json

    if stream is None:  # closed by who called us
        return
    if options.format == "json":
        stream.write(render_json(summary))
    else:
        print_text(summary, stream, options.top)
    stream.flush()
