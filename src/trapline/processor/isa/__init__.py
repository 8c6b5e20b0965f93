"""The instructions, one file a family.  Importing this package registers them all."""

from trapline.processor.isa import (
    arithmetic,
    bit,
    branch,
    decimal,
    exchange,
    flag,
    logic,
    misc,
    move,
    multiply,
    shift,
    stack,
    string,
)

__all__ = [
    "arithmetic",
    "bit",
    "branch",
    "decimal",
    "exchange",
    "flag",
    "logic",
    "misc",
    "move",
    "multiply",
    "shift",
    "stack",
    "string",
]
