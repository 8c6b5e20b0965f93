"""The command: picks the verb, and turns what goes wrong into a sentence and a status."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from trapline import __version__
from trapline.cli.failure import BROKEN_PIPE, TOOL_ERROR, Failure, complain, reason, silence
from trapline.cli.standard_files import take_closed

VERBS = {
    "trace": "run a program and report every bus lock it takes",
    "report": "print the report of a trace again",
    "demo": "trace a small program that ships with Trapline",
    "run": "run a guest image on a small virtual machine",
    "cpus": "list the processor models and what each tells of bus locks",
    "doctor": "say what this machine and this installation can do",
}
EPILOG = """\
examples:
  trapline demo                                 see a report in seconds
  trapline trace -- ./server --port 8080        trace a program, report to stderr
  trapline trace --output locks.jsonl -- make   keep the trace, children included
  trapline report locks.jsonl --format json     print it again, for tools

Trapline runs the program on a processor in software: any x86-64 Linux machine will do, without
root.  It is not a sandbox: the program has all the rights of the person who runs it.
"""


class Parser(argparse.ArgumentParser):
    """Complains as the rest of the command does."""

    def error(self, message: str) -> NoReturn:
        complain(message, f"{self.prog} --help")
        raise SystemExit(TOOL_ERROR)


def make_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The whole grammar; only the verb in use is loaded, as some need a processor."""
    parser = Parser(
        prog="trapline",
        description="Find every bus lock (split lock) an x86 program takes, and how to avoid it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trapline {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, purpose in VERBS.items():
        adding = verbs.add_parser(
            name,
            help=purpose,
            description=purpose[0].upper() + purpose[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == verb:
            importlib.import_module(f"trapline.cli.{name}").add_arguments(adding)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the answer is its exit status."""
    take_closed()
    arguments = sys.argv[1:] if arguments is None else arguments
    verb = next((word for word in arguments if not word.startswith("-")), None)
    try:
        options = make_parser(verb).parse_args(arguments)
        status: int = importlib.import_module(f"trapline.cli.{options.verb}").run(options)
        _flush()
        return status
    except Failure as failure:
        complain(failure.sentence, failure.hint)
        return failure.status
    except BrokenPipeError:
        silence(1)
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        complain(f"cannot go on: {reason(error)}")
        silence(1)
        return TOOL_ERROR


def _flush() -> None:
    """Have a full disk or a closed pipe under stdout show itself while it can be reported."""
    if sys.stdout is not None:
        sys.stdout.flush()
