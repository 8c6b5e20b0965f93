"""One sentence a site: what to change so that the bus lock goes away."""

from __future__ import annotations

from trapline.report.summary import Site

UNCACHED = (
    "This memory is not write-back, so every locked access to it locks the bus, aligned or not:"
    " use plain loads and stores there, or map it write-back."
)


def advise(site: Site) -> str:
    """What to do about a site; a naturally aligned operand can never be split."""
    if site["cause"] == "uncached":
        return UNCACHED
    size: int = site["size"]
    missing = -int(site["linear"]) % size
    pad = f"{missing} {'byte' if missing == 1 else 'bytes'} of padding before it"
    kind = site.place.kind if site.place is not None else ""
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
