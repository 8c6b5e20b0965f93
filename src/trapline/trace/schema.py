"""What the records of a trace must look like to be used: each field's type and range.

A line may be whole JSON and still be damaged.  Fields that are not listed are later versions'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from trapline.trace.file import Record

Check = Callable[[Any], bool]
LARGEST_OPERAND = 64


def is_sound(record: Record) -> bool:
    """Whether a record of a known kind can be used; others are passed over anyway."""
    fields = _RECORDS.get(str(record.get("record")))
    return fields is None or _fits(record, fields, {**_OPTIONAL, **fields})


def _fits(found: Any, fields: Mapping[str, Check], optional: Mapping[str, Check]) -> bool:
    return (
        isinstance(found, dict)
        and all(name in found and check(found[name]) for name, check in fields.items())
        and all(check(found[name]) for name, check in optional.items() if name in found)
    )


def _integer(first: int, last: int) -> Check:
    def check(found: Any) -> bool:
        return isinstance(found, int) and not isinstance(found, bool) and first <= found <= last

    return check


def _text(found: Any) -> bool:
    return isinstance(found, str)


def _word(found: Any) -> bool:
    return isinstance(found, str) and found.isidentifier() and found.isascii()


def _or_none(check: Check) -> Check:
    return lambda found: found is None or check(found)


def _many(check: Check) -> Check:
    return lambda found: isinstance(found, list) and all(map(check, found))


def _made_of(optional: Mapping[str, Check] | None = None, **fields: Check) -> Check:
    return lambda found: _fits(found, fields, optional or {})


def _seconds(found: Any) -> bool:
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return is_number and math.isfinite(found) and abs(found) < 1e12


def _hex(found: Any) -> bool:
    try:
        return isinstance(found, str) and found.isascii() and bytes.fromhex(found) is not None
    except ValueError:
        return False


def _shares(found: Any) -> bool:
    return isinstance(found, dict) and all(
        name.isascii() and name.isdigit() and len(name) < 12 and _COUNT(share)
        for name, share in found.items()
    )


def _pair(found: Any) -> bool:
    return isinstance(found, list) and len(found) == 2 and all(map(_COUNT, found))


_ADDRESS = _COUNT = _integer(0, (1 << 64) - 1)
_NUMBER = _integer(0, (1 << 31) - 1)
_BIAS = _integer(-(1 << 64), 1 << 64)
_STATUS = _integer(-(1 << 31), (1 << 32) - 1)
_SIGNAL = _integer(0, 64)
_FRAME = _made_of(
    {name: _or_none(_ADDRESS) for name in ("cfa", "rsp", "rbp")},
    rip=_ADDRESS, lookup=_ADDRESS, map=_or_none(_NUMBER),
)  # fmt: skip
_MEMORY = _made_of(
    {name: _or_none(check) for name, check in
     (("fs_base", _ADDRESS), ("map", _NUMBER), ("before", _NUMBER))},
    kind=_word, tid=_or_none(_NUMBER),
)  # fmt: skip
_COUNTED = _made_of(
    {"places": _many(_pair)}, site=_NUMBER, count=_COUNT, last=_seconds, threads=_shares
)
_OF_PROCESS: dict[str, Check] = {"pid": _NUMBER, "image": _NUMBER}
_PROGRAM = {**_OF_PROCESS, "program": _many(_text), "executable": _text}
_ENDED = {"signal": _or_none(_SIGNAL)}
_RECORDS: dict[str, dict[str, Check]] = {
    "start": _PROGRAM,
    "exec": _PROGRAM,
    "map": {
        **_OF_PROCESS, "map": _NUMBER, "start": _ADDRESS, "end": _ADDRESS, "offset": _ADDRESS,
        "path": _or_none(_text), "name": _text,
    },
    "thread": {"tid": _NUMBER, "name": _text},
    "site": {
        **_OF_PROCESS, "site": _NUMBER, "tid": _NUMBER, "time": _seconds, "rip": _ADDRESS,
        "next_rip": _ADDRESS, "linear": _ADDRESS, "size": _integer(1, LARGEST_OPERAND),
        "cpl": _integer(0, 3), "cause": _word, "outcome": _word,
    },
    "place": {
        **_OF_PROCESS, "site": _NUMBER, "place": _NUMBER, "tid": _NUMBER, "linear": _ADDRESS,
    },
    "counts": {**_OF_PROCESS, "counts": _many(_COUNTED)},
    "event_limit": {"limit": _NUMBER},
    "undefined": {**_OF_PROCESS, "rip": _ADDRESS, "code": _hex, "text": _text},
    "exit": {"pid": _NUMBER, "code": _or_none(_STATUS), **_ENDED},
    "end": {"exit_status": _or_none(_STATUS)},
}  # fmt: skip
_OPTIONAL: dict[str, Check] = {
    "signal": _or_none(_SIGNAL), "build_id": _or_none(_text), "bias": _or_none(_BIAS),
    "code": _or_none(_hex), "instruction": _or_none(_text), "operand": _or_none(_text),
    "problems": _many(_text),
    "memory": _or_none(_MEMORY), "stack": _or_none(_many(_FRAME)), "map": _or_none(_NUMBER),
}  # fmt: skip
