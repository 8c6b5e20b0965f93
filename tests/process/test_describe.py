"""Which kind of memory an address is in, and the text of maps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from trapline.process.areas import Area, AreaMap, MappedFile
from trapline.process.describe import describe
from trapline.process.procfs import format_maps

LIBRARY = MappedFile("/lib/x.so", 0xFE00, 77)


def process() -> Any:
    areas = AreaMap()
    areas.add(Area(0x400000, 0x402000, 5, file=LIBRARY, offset=0x3000))
    areas.add(Area(0x500000, 0x501000, 3, name="[heap]"))
    areas.add(Area(0x7000_0000_0000, 0x7000_0010_0000, 3, name="[stack]"))
    areas.add(Area(0x7100_0000_0000, 0x7100_0010_0000, 3))
    areas.add(Area(0x7200_0000_0000, 0x7200_0000_1000, 3, shared=True))
    threads = [
        SimpleNamespace(tid=10, stack_pointer=0x7000_000F_0000),
        SimpleNamespace(tid=11, stack_pointer=0x7100_000F_0000),
    ]
    return SimpleNamespace(memory=SimpleNamespace(areas=areas), threads=threads)


def test_kinds() -> None:
    one = process()
    code = describe(one, 0x401234)
    assert (code.kind, code.path, code.file_offset) == ("file", "/lib/x.so", 0x4234)
    assert describe(one, 0x500010).kind == "heap"
    first, second = describe(one, 0x7000_0000_0008), describe(one, 0x7100_0000_0008)
    assert (first.kind, first.tid) == ("stack", 10)
    assert (second.kind, second.tid) == ("stack", 11)
    assert describe(one, 0x7200_0000_0000).kind == "anonymous"
    assert describe(one, 0x600000).kind == "unmapped"
    assert describe(one, 0x600000).path is None


def test_the_text_of_maps() -> None:
    lines = format_maps(process().memory.areas).decode().splitlines()
    assert lines[0] == (
        "00400000-00402000 r-xp 00003000 fe:00 77                                 /lib/x.so"
    )
    assert lines[-1] == "720000000000-720000001000 rw-s 00000000 00:00 0 "
