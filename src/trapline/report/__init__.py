"""Reads a trace file and prints what it says; never runs a guest."""

from trapline.report.json import render_json
from trapline.report.summary import Summary, summarize
from trapline.report.text import print_text

__all__ = ["Summary", "print_text", "render_json", "summarize"]
