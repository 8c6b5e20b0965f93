"""One sentence a site: what to change so that the bus lock goes away."""

from __future__ import annotations

import re

from trapline.report.summary import Site
from trapline.report.words import plural
from trapline.trace import Field

UNCACHED = (
    "This memory is not write-back, so every locked access to it locks the bus, aligned or not:"
    " use plain loads and stores there, or map it write-back."
)


def _unpack(field: Field, size: int) -> str | None:
    """What to do about a member that its struct puts at a bad offset: the outermost that is, as
    all that is in it moves with it; None if the struct is not to blame."""
    inside = sum(step.offset for step in field.steps) % size
    outside = re.split(r"[.\[+]", field.path)[0]
    for step in field.steps:
        if step.offset % size:
            struct = f"struct {step.struct}" if step.struct else "its struct"
            member = step.path if step.path != outside else f"the unnamed part of {outside}"
            missing = -(inside or step.offset) % size
            return (
                f"{member} begins {plural(step.offset, 'byte')} into {struct}, no multiple of"
                f" {size}: put {plural(missing, 'byte')} of padding before it,"
                " or do without packed."
            )
        outside = step.path
    return None


def _align(field: Field, size: int, start: int) -> str:
    """What to do about a variable at `start`, or about the place in it that is used."""
    variable = re.split(r"[.\[+]", field.path)[0]
    if not field.start % size:
        return f"Declare {variable} with alignas({size}), so that {field.path} is aligned."
    align = f", and declare {variable} with alignas({size})" if start % size else ""
    return (
        f"{field.path} is {plural(field.start, 'byte')} into {variable}, no multiple of {size}:"
        f" use an offset that is one{align}."
    )


def _advise_field(field: Field, size: int, linear: int) -> str:
    start = linear - field.start
    is_whole_to_blame = start % size and not sum(step.offset for step in field.steps) % size
    unpacking = None if is_whole_to_blame else _unpack(field, size)
    return unpacking or _align(field, size, start)


def advise(site: Site) -> str:
    """What to do about a site; a naturally aligned operand can never be split."""
    if site["cause"] == "uncached":
        return UNCACHED
    size: int = site["size"]
    pad = f"{plural(-int(site['linear']) % size, 'byte')} of padding before it"
    kind = site.place.kind if site.place is not None else ""
    field = site.place.field if site.place is not None else None
    if field is not None:
        return _advise_field(field, size, int(site["linear"]))
    symbol = site.place.symbol if site.place is not None else None
    if kind in ("global", "thread-local") and symbol is not None:
        return (
            f"Align what is accessed in {symbol}: alignas({size}) on the variable and on the"
            f" field (no packed, or {pad})."
        )
    if kind == "stack":
        return (
            f"Align the variable: alignas({size}) on it, or on the char buffer that holds it;"
            f" as a field, keep it out of packed structs (or add {pad})."
        )
    if kind in ("heap", "anonymous"):
        return (
            "Allocators align their blocks, so it is the offset in the block: make the field"
            f" {size}-byte aligned (no packed struct, alignas({size}), or {pad})."
        )
    return f"Make the operand {size}-byte aligned: alignas({size}), no packed struct, or {pad}."
