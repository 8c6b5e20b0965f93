"""The command line: one file a verb, and the only place where the rooms are put together."""

from trapline.cli.entry import main

__all__ = ["main"]
