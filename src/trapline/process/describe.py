"""Says what an address of the program is: whose stack, which file at what offset, heap or other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapline.process.areas import Area

if TYPE_CHECKING:
    from trapline.process.process import Process


@dataclass(frozen=True, slots=True)
class Description:
    """`kind` is "file", "heap", "stack", "anonymous" or "unmapped"."""

    kind: str
    area: Area | None = None
    tid: int = 0  # whose stack
    file_offset: int | None = None

    @property
    def path(self) -> str | None:
        """The mapped file's."""
        return self.area.file.path if self.area is not None and self.area.file else None


def describe(process: Process, linear: int) -> Description:
    """What `linear` is, by the areas there are and the stack pointers the threads have."""
    area = process.memory.areas.find(linear)
    if area is None:
        return Description("unmapped")
    if area.file is not None:
        return Description("file", area, file_offset=area.offset + linear - area.start)
    if area.name == "[heap]":
        return Description("heap", area)
    for thread in process.threads:
        if area.start <= thread.stack_pointer < area.end:
            return Description("stack", area, thread.tid)
    return Description("stack" if area.name == "[stack]" else "anonymous", area)
