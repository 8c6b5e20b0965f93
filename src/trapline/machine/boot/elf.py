"""ELF executables, 32 and 64 bits: the segments into memory at their physical addresses.

System V ABI, "Object Files"; what of the file is not there, or is nonsense, is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from trapline.machine.boot.image import BadImage, Part, place
from trapline.machine.memory import Memory

_EXECUTABLE, _SHARED = 2, 3
_MACHINES = {1: 3, 2: 62}  # EI_CLASS: e_machine
_PT_LOAD, _PT_INTERP = 1, 3
_PF_X = 1
_HEADERS = {1: struct.Struct("<16sHHIIIIIHHHHHH"), 2: struct.Struct("<16sHHIQQQIHHHHHH")}
_SEGMENTS = {1: struct.Struct("<8I"), 2: struct.Struct("<IIQQQQQQ")}
MAGIC = b"\x7fELF"


class Elf:
    """The headers of one file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        kind = data[4] if len(data) > 5 else 0
        if kind not in _HEADERS or data[5] != 1:
            raise BadImage("the ELF file is truncated, or not for a little-endian machine")
        self.bits = 32 * kind
        header = _HEADERS[kind]
        if len(data) < header.size:
            raise BadImage("the ELF file ends within its header")
        fields = header.unpack_from(data)
        self.entry: int = fields[4]
        file_type, machine, table = fields[1], fields[2], fields[5]
        entry_size, count = fields[9], fields[10]
        if machine != _MACHINES[kind]:
            raise BadImage(f"the ELF file is for machine {machine}, not for x86")
        if file_type not in (_EXECUTABLE, _SHARED):
            raise BadImage("the ELF file is not an executable")
        if not count or entry_size != _SEGMENTS[kind].size:
            raise BadImage("the ELF file has no program headers")
        if table + count * entry_size > len(data):
            raise BadImage("the ELF file ends within its program headers")
        self.segments = list(self._segments(kind, table, count))
        if not self.segments:
            raise BadImage("the ELF file has nothing to load")

    def _segments(self, kind: int, table: int, count: int) -> Iterator[Part]:
        form = _SEGMENTS[kind]
        for i in range(count):
            words = form.unpack_from(self._data, table + i * form.size)
            if words[0] == _PT_INTERP:
                raise BadImage("the ELF file is a program for an operating system, not a guest")
            if words[0] != _PT_LOAD:
                continue
            flags = words[6] if kind == 1 else words[1]
            offset, virtual, physical, file_size, size = words[1:6] if kind == 1 else words[2:7]
            is_executable = bool(flags & _PF_X)
            segment = Part(offset, virtual, physical, file_size, size, is_executable)
            if segment.offset + segment.file_size > len(self._data):
                raise BadImage("the ELF file ends within a segment")
            if segment.file_size > segment.size:
                raise BadImage("a segment of the ELF file is larger in the file than in memory")
            if segment.size:
                yield segment

    @property
    def span(self) -> tuple[int, int]:
        """The physical addresses from the first byte to past the last."""
        return (
            min(segment.physical for segment in self.segments),
            max(segment.physical + segment.size for segment in self.segments),
        )

    @property
    def physical_entry(self) -> int:
        """The entry as a physical address, as paging is not set up the guest's way yet."""
        for segment in self.segments:
            if segment.virtual <= self.entry < segment.virtual + segment.size:
                return self.entry + segment.physical - segment.virtual
        raise BadImage(f"the entry {self.entry:#x} lies in no segment of the ELF file")

    def load(self, memory: Memory) -> None:
        for segment in self.segments:
            data = self._data[segment.offset : segment.offset + segment.file_size]
            place(memory, segment.physical, data, segment.size)
