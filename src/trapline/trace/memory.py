"""What kind of memory an address is: a thread's stack, the heap, a file, or anonymous.

Decided while the program waits, from its mappings; which global it is needs the image's symbols
and is left to `location`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from trapline.trace.region import Region

PTHREAD_SIZE = 4096  # glibc's thread descriptor, at fs_base in the mapping of the stack


class MemoryKind(NamedTuple):
    """`kind` is "stack", "heap", "file", "anonymous", "special" or "unmapped"."""

    kind: str
    tid: int | None = None  # whose stack
    region: Region | None = None
    before: Region | None = None  # the file mapping right below, as .bss has it


def classify(
    linear: int,
    stack_pointers: Mapping[int, int],
    own_tid: int,
    find: Callable[[int], Region | None],
) -> MemoryKind:
    """The kind of memory at `linear`, as thread `own_tid` sees it."""
    region = find(linear)
    if region is None:
        return MemoryKind("unmapped")
    if region.path is not None:
        return MemoryKind("file", None, region)
    before = _file_below(region, find)
    if region.name == "[heap]":
        return MemoryKind("heap", None, region, before)
    owner = _stack_owner(region, stack_pointers, own_tid)
    if owner is not None:
        return MemoryKind("stack", owner, region, before)
    if region.name.startswith("[") and region.name != "[stack]":
        return MemoryKind("special", None, region, before)
    return MemoryKind("anonymous", None, region, before)


def _stack_owner(region: Region, stack_pointers: Mapping[int, int], own_tid: int) -> int | None:
    """The thread whose stack pointer lies in this mapping; the asking thread first."""
    for tid in (own_tid, *stack_pointers):
        if tid in stack_pointers and region.start <= stack_pointers[tid] <= region.end:
            return tid
    return None


def _file_below(region: Region, find: Callable[[int], Region | None]) -> Region | None:
    """The file mapping that an anonymous one follows without a gap."""
    below = find(region.start - 1)
    for _ in range(4):  # .bss may have been cut by mprotect
        if below is None or below.path is not None:
            return below
        below = find(below.start - 1)
    return None
