"""The report as one JSON document, for tools: its fields are a promise, `version` counts changes.

Every field is always there; what is not known is null.
"""

from __future__ import annotations

import json
from typing import Any

from trapline.report.summary import Frame, Missing, Site, Spot, Summary
from trapline.trace import Location

VERSION = 1


def render_json(summary: Summary) -> str:
    """The document, with a line end."""
    trace = summary.trace
    document = {
        "version": VERSION,
        "program": trace.program,
        "exit_status": trace.exit_status,
        "bus_locks": summary.total,
        "sites": [_site(site) for site in summary.sites],
        "unimplemented": [_missing(one) for one in summary.missing],
        "illegal": [_missing(one) for one in summary.illegal],
        "notes": summary.notes,
    }
    return json.dumps(document, indent=2) + "\n"


def _site(site: Site) -> dict[str, Any]:
    return {
        "count": site.count,
        "cause": site["cause"],
        "outcome": site["outcome"],
        "cpl": site["cpl"],
        "culprit_rip": site["rip"],
        "reported_rip": site["next_rip"],
        "instruction": site["instruction"],
        "bytes": spaced(site["code"]),
        **_location(site.where),
        "operand": site["operand"],
        "linear": site["linear"],
        "size": site["size"],
        "split": list(site.split),
        "memory": site.place.text if site.place is not None else None,
        "threads": sorted(site.threads),
        "pids": site.pids,
        "first_time": round(site.first_time, 6),
        "last_time": round(site.last_time, 6),
        "stack": _stack(site.stack),
        "places": [_spot(spot) for spot in site.spots],
        "unplaced": site.unplaced,
    }


def _spot(spot: Spot) -> dict[str, Any]:
    return {
        "count": spot.count,
        "linear": spot.linear,
        "memory": spot.place.text if spot.place is not None else None,
        "stack": _stack(spot.stack),
    }


def _stack(frames: list[Frame] | None) -> list[dict[str, Any]] | None:
    return None if frames is None else [_frame(frame) for frame in frames]


def _frame(frame: Frame) -> dict[str, Any]:
    return {"rip": frame.rip, **_location(frame.where), "inlined": frame.where.is_inlined}


def _missing(one: Missing) -> dict[str, Any]:
    return {
        "rip": one.rip,
        "instruction": one.text or None,
        "bytes": spaced(one.code),
        **_location(one.where),
    }


def _location(where: Location) -> dict[str, Any]:
    return {
        "module": where.module,
        "module_offset": where.module_offset,
        "function": where.function,
        "file": where.file,
        "line": where.line,
    }


def spaced(code: str | None) -> str | None:
    """Instruction bytes as objdump prints them."""
    return None if code is None else bytes.fromhex(code).hex(" ")
