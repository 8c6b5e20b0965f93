"""Call frame information: how to find the caller's registers, from .eh_frame or .debug_frame.

Reads one entry at a time through .eh_frame_hdr's search table, as unwinding must be quick while
the program waits.  Works on link-time addresses; reading the stack is unwind's business.
DWARF 5, "Call Frame Information"; LSB Core, "Exception Frames" for .eh_frame.
"""

from __future__ import annotations

import bisect
import contextlib
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from trapline.trace.image import Image

RETURN_ADDRESS = 16  # the x86-64 ABI's DWARF number of the return address
_FIXED = {0x00: "<Q", 0x02: "<H", 0x03: "<I", 0x04: "<Q", 0x0A: "<h", 0x0B: "<i", 0x0C: "<q"}


class Rule(NamedTuple):
    """How one register (or the CFA) is found: by offset, expression, register, or not at all."""

    kind: str  # "offset", "val_offset", "expression", "val_expression", "register",
    # "undefined", "same", and for the CFA "cfa"
    number: int = 0
    register: int = 0
    expression: bytes = b""


@dataclass(slots=True)
class Row:
    """The rules that hold at one address."""

    cfa: Rule | None = None
    registers: dict[int, Rule] = field(default_factory=dict)
    is_signal_frame: bool = False
    return_column: int = RETURN_ADDRESS

    def copy(self) -> Row:
        return Row(self.cfa, dict(self.registers), self.is_signal_frame, self.return_column)


@dataclass(slots=True)
class _Cie:
    code_factor: int
    data_factor: int
    return_column: int
    augmentation: str
    pointer_encoding: int
    instructions: bytes


class Reader:
    """A cursor over bytes with DWARF's number formats; `base` is the address of byte 0."""

    def __init__(self, content: bytes, at: int = 0, base: int = 0) -> None:
        self.content, self.at, self.base = content, at, base

    def fixed(self, layout: str) -> int:
        value: int = struct.unpack_from(layout, self.content, self.at)[0]
        self.at += struct.calcsize(layout)
        return value

    def byte(self) -> int:
        self.at += 1
        return self.content[self.at - 1]

    def uleb(self) -> int:
        result = shift = 0
        while True:
            byte = self.byte()
            result |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return result

    def sleb(self) -> int:
        start = self.at
        value = self.uleb()
        width = 7 * (self.at - start)
        return value - (1 << width) if value >> (width - 1) else value

    def block(self) -> bytes:
        size = self.uleb()
        self.at += size
        return self.content[self.at - size : self.at]

    def string(self) -> str:
        end = self.content.index(0, self.at)
        text = self.content[self.at : end].decode("latin-1")
        self.at = end + 1
        return text

    def pointer(self, encoding: int, data_base: int = 0) -> int:
        """A DW_EH_PE_* encoded pointer (indirect ones are not followed)."""
        here = self.base + self.at
        form = encoding & 0x0F
        if form == 0x01:
            value = self.uleb()
        elif form == 0x09:
            value = self.sleb()
        else:
            value = self.fixed(_FIXED[form])
        if encoding & 0x70 == 0x10:
            value += here
        elif encoding & 0x70 == 0x30:
            value += data_base
        return value & 0xFFFF_FFFF_FFFF_FFFF


class CallFrames:
    """The call frame information of one image, from all the sections that have some."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._tables = [table for table in (_searchable(image),) if table is not None]
        self._is_listed = False
        self._listing = threading.Lock()
        self.row = lru_cache(4096)(self._row)

    def _row(self, vaddr: int) -> Row | None:
        """The rules at an address, or None where the image says nothing about it."""
        row = self._find(vaddr)
        if row is not None or self._is_listed:
            return row
        with self._listing:
            if not self._is_listed:
                self._tables += _listed(self._image, with_eh_frame=not self._tables)
                self._is_listed = True
        return self._find(vaddr)

    def _find(self, vaddr: int) -> Row | None:
        for table in self._tables:
            try:
                row = table.row(vaddr)
            except (struct.error, IndexError, ValueError, KeyError):
                continue  # a damaged table must not end a trace
            if row is not None:
                return row
        return None


def _searchable(image: Image) -> _Table | None:
    """.eh_frame with .eh_frame_hdr's sorted table, used in place."""
    found = image.segment_bytes("PT_GNU_EH_FRAME")
    if found is None or len(found[1]) < 12:
        return None
    base, content = found
    reader = Reader(content, 0, base)
    version, frame, count, order = (reader.byte() for _ in range(4))
    if version != 1 or order != 0x3B or count == 0xFF:  # 0x3B: datarel sdata4, all linkers
        return None
    at = reader.pointer(frame, base)
    entries = reader.pointer(count, base)
    usable = content[reader.at : reader.at + 8 * entries]
    words = memoryview(usable[: len(usable) // 8 * 8]).cast("i")
    for segment in image.segments:
        if segment.vaddr <= at < segment.vaddr + segment.file_size:
            section = image.read(at, segment.vaddr + segment.file_size - at)
            table = _Table(section, at, is_eh=True)
            table.starts, table.entries, table.origin = words[::2], words[1::2], base
            return table
    return None


def _listed(image: Image, with_eh_frame: bool) -> Iterator[_Table]:
    """Tables without a search table: their entries are listed once."""
    if with_eh_frame and (found := image.section(".eh_frame")) is not None:
        yield _Table(found[1], found[0], is_eh=True).listed()
    for owner in (image, image.debug):
        found = owner.section(".debug_frame") if owner is not None else None
        if found is not None:
            yield _Table(found[1], 0, is_eh=False).listed()
            return


class _Table:
    """One section of entries; `starts` are sorted, and `entries` say where each one stands."""

    def __init__(self, content: bytes, base: int, is_eh: bool) -> None:
        self._content, self._base, self._is_eh = content, base, is_eh
        self.starts: list[int] | memoryview = []
        self.entries: list[int] | memoryview = []
        self.origin = 0  # what both are relative to

    def listed(self) -> _Table:
        """The same, its entries found by reading all of them."""
        with contextlib.suppress(struct.error, IndexError, ValueError, KeyError):
            found = sorted(self._scan())
            self.starts = [start for start, _ in found]
            self.entries = [at + self._base for _, at in found]
        return self

    def row(self, vaddr: int) -> Row | None:
        """The rules at an address, or None."""
        at = bisect.bisect_right(self.starts, vaddr - self.origin) - 1
        if at < 0:
            return None
        return self._evaluate(self.entries[at] + self.origin - self._base, vaddr)

    def _scan(self) -> list[tuple[int, int]]:
        found = []
        at = 0
        while at + 4 <= len(self._content):
            reader, end, is_cie, cie_at = self._open(at)
            if end <= at + 4:  # a terminator; .eh_frame of several objects may go on after it
                at += 4
                continue
            if not is_cie:
                cie = self._cie(cie_at)
                found.append((reader.pointer(cie.pointer_encoding), at))
            at = end
        return found

    def _open(self, at: int) -> tuple[Reader, int, bool, int]:
        """(cursor after the CIE pointer, end of the entry, is a CIE, where its CIE is)."""
        reader = Reader(self._content, at, self._base)
        length = reader.fixed("<I")
        wide = length == 0xFFFF_FFFF
        if wide:
            length = reader.fixed("<Q")
        end = reader.at + length
        if not length:
            return reader, end, True, at
        here = reader.at
        cie = reader.fixed("<Q" if wide and not self._is_eh else "<I")
        if self._is_eh:
            return reader, end, cie == 0, here - cie
        is_cie = cie == (0xFFFF_FFFF_FFFF_FFFF if wide else 0xFFFF_FFFF)
        return reader, end, is_cie, cie

    def _cie(self, at: int) -> _Cie:
        reader, end, _, _ = self._open(at)
        version = reader.byte()
        augmentation = reader.string()
        if version >= 4:
            reader.at += 2  # address and segment selector size
        code_factor, data_factor = reader.uleb(), reader.sleb()
        return_column = reader.byte() if version == 1 else reader.uleb()
        encoding = 0x00
        if augmentation.startswith("z"):
            size = reader.uleb()
            after = reader.at + size
            for letter in augmentation[1:]:
                if letter == "R":
                    encoding = reader.byte()
                elif letter == "L":
                    reader.at += 1
                elif letter == "P":
                    reader.pointer(reader.byte())
            reader.at = after
        instructions = self._content[reader.at : end]
        return _Cie(code_factor, data_factor, return_column, augmentation, encoding, instructions)

    def _evaluate(self, at: int, vaddr: int) -> Row | None:
        reader, end, _, cie_at = self._open(at)
        cie = self._cie(cie_at)
        start = reader.pointer(cie.pointer_encoding)
        size = reader.pointer(cie.pointer_encoding & 0x0F)
        if not start <= vaddr < start + size:
            return None
        if cie.augmentation.startswith("z"):
            augmented = reader.uleb()
            reader.at += augmented
        row = Row(None, {}, "S" in cie.augmentation, cie.return_column)
        _execute(cie.instructions, cie, row, Row(), start, 1 << 64)
        initial = row.copy()
        _execute(self._content[reader.at : end], cie, row, initial, start, vaddr)
        return row


def _execute(code: bytes, cie: _Cie, row: Row, initial: Row, start: int, vaddr: int) -> None:
    """Run call frame instructions up to the last one that holds at `vaddr`."""
    reader = Reader(code)
    stack: list[Row] = []
    location = start
    while reader.at < len(code):
        opcode = reader.byte()
        high, low = opcode & 0xC0, opcode & 0x3F
        if high == 0x40:
            location += low * cie.code_factor
        elif opcode in (0x02, 0x03, 0x04):
            location += reader.fixed({2: "<B", 3: "<H", 4: "<I"}[opcode]) * cie.code_factor
        elif opcode == 0x01:
            location = reader.fixed("<Q")
        elif high == 0x80:
            row.registers[low] = Rule("offset", reader.uleb() * cie.data_factor)
        elif high == 0xC0:
            _restore(row, initial, low)
        elif opcode == 0x0A:
            stack.append(row.copy())
        elif opcode == 0x0B:
            saved = stack.pop()
            row.cfa, row.registers = saved.cfa, saved.registers
        elif not _define_cfa(opcode, reader, cie, row):
            _define_register(opcode, reader, cie, row, initial)
        if location > vaddr:
            return


def _restore(row: Row, initial: Row, register: int) -> None:
    if register in initial.registers:
        row.registers[register] = initial.registers[register]
    else:
        row.registers.pop(register, None)


def _define_cfa(opcode: int, reader: Reader, cie: _Cie, row: Row) -> bool:
    old = row.cfa or Rule("cfa")
    if opcode == 0x0C:  # def_cfa
        register = reader.uleb()
        row.cfa = Rule("cfa", reader.uleb(), register)
    elif opcode == 0x12:  # def_cfa_sf
        register = reader.uleb()
        row.cfa = Rule("cfa", reader.sleb() * cie.data_factor, register)
    elif opcode == 0x0D:  # def_cfa_register
        row.cfa = old._replace(register=reader.uleb())
    elif opcode == 0x0E:  # def_cfa_offset
        row.cfa = old._replace(number=reader.uleb())
    elif opcode == 0x13:  # def_cfa_offset_sf
        row.cfa = old._replace(number=reader.sleb() * cie.data_factor)
    elif opcode == 0x0F:  # def_cfa_expression
        row.cfa = Rule("expression", expression=reader.block())
    else:
        return False
    return True


def _define_register(opcode: int, reader: Reader, cie: _Cie, row: Row, initial: Row) -> None:
    if opcode == 0x00:  # nop
        return
    if opcode == 0x2E:  # GNU_args_size
        reader.uleb()
        return
    register = reader.uleb()
    match opcode:
        case 0x05:
            row.registers[register] = Rule("offset", reader.uleb() * cie.data_factor)
        case 0x06:
            _restore(row, initial, register)
        case 0x07:
            row.registers[register] = Rule("undefined")
        case 0x08:
            row.registers[register] = Rule("same")
        case 0x09:
            row.registers[register] = Rule("register", register=reader.uleb())
        case 0x10:
            row.registers[register] = Rule("expression", expression=reader.block())
        case 0x11:
            row.registers[register] = Rule("offset", reader.sleb() * cie.data_factor)
        case 0x14:
            row.registers[register] = Rule("val_offset", reader.uleb() * cie.data_factor)
        case 0x15:
            row.registers[register] = Rule("val_offset", reader.sleb() * cie.data_factor)
        case 0x16:
            row.registers[register] = Rule("val_expression", expression=reader.block())
        case 0x2F:  # GNU_negative_offset_extended
            row.registers[register] = Rule("offset", -reader.uleb() * cie.data_factor)
        case _:
            raise ValueError(f"call frame instruction {opcode:#x}")
