"""The line table of one compilation unit: addresses to rows, by the DWARF 2-5 line number program.

pyelftools reads the header; the program itself is run here, ten times faster than there, as one
unit of a large program has a hundred thousand rows.
"""

from __future__ import annotations

import bisect
import posixpath
from functools import lru_cache
from typing import Any, NamedTuple

from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.dwarfinfo import DWARFInfo

from trapline.trace.cfi import Reader

COPY, ADVANCE_PC, ADVANCE_LINE, SET_FILE, CONST_ADD_PC, FIXED_ADVANCE_PC = 1, 2, 3, 4, 8, 9
END_SEQUENCE, SET_ADDRESS = 1, 2


class Sequence(NamedTuple):
    """A run of rows with rising addresses; `end` is behind the last one."""

    start: int
    end: int
    addresses: list[int]
    rows: list[tuple[int, int]]  # file number, line


class Lines:
    """One unit's table."""

    def __init__(self, dwarf: DWARFInfo, unit: CompileUnit) -> None:
        program: Any = dwarf.line_program_for_CU(unit)
        comp_dir = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
        self._comp_dir = text_of(comp_dir.value) if comp_dir is not None else ""
        self._header: Any = program.header if program is not None else None
        self._sequences = sorted(_run(program), key=lambda one: one[:2]) if program else []
        self.file = lru_cache(1024)(self._file)

    def at(self, vaddr: int) -> tuple[str | None, int | None]:
        """(file, line) of an address."""
        for start, end, addresses, rows in self._sequences:
            if start <= vaddr < end:
                number, line = rows[bisect.bisect_right(addresses, vaddr) - 1]
                return self.file(number), line or None
        return None, None

    def _file(self, number: int) -> str | None:
        """The path of a file of the table, by its number."""
        if self._header is None:
            return None
        is_five = self._header.version >= 5
        index = number if is_five else number - 1
        if not 0 <= index < len(self._header.file_entry):
            return None
        entry = self._header.file_entry[index]
        folders = self._header.include_directory
        folder = ""
        if is_five and entry.dir_index < len(folders):
            folder = text_of(folders[entry.dir_index])
        elif 0 < entry.dir_index <= len(folders):
            folder = text_of(folders[entry.dir_index - 1])
        return posixpath.normpath(posixpath.join(self._comp_dir, folder, text_of(entry.name)))


def text_of(raw: bytes | str) -> str:
    """A string of DWARF."""
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw


def _run(program: Any) -> list[Sequence]:
    """Execute a line number program (DWARF 5, "The Line Number Program")."""
    header = program.header
    program.stream.seek(program.program_start_offset)
    size = program.program_end_offset - program.program_start_offset
    reader = Reader(program.stream.read(size))
    code, end = reader.content, len(reader.content)
    base, line_range = header.opcode_base, header.line_range
    step = header.minimum_instruction_length
    # What each special opcode adds to address and line.
    special = [
        ((opcode - base) // line_range * step, header.line_base + (opcode - base) % line_range)
        for opcode in range(256)
    ]
    sequences: list[Sequence] = []
    state = _State()
    while reader.at < end:
        opcode = code[reader.at]
        reader.at += 1
        if opcode >= base:
            more, lines = special[opcode]
            state.address += more
            state.line += lines
            state.add_row()
        elif opcode == 0:
            _extended(reader, state, sequences)
        else:
            _standard(opcode, reader, state, header, special[255][0])
    return sequences


class _State:
    """The registers of the line number machine that matter here, and the rows so far."""

    __slots__ = ("address", "file", "line", "addresses", "rows")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As at the beginning of each sequence."""
        self.address, self.file, self.line = 0, 1, 1
        self.addresses: list[int] = []
        self.rows: list[tuple[int, int]] = []

    def add_row(self) -> None:
        self.addresses.append(self.address)
        self.rows.append((self.file, self.line))


def _standard(opcode: int, reader: Reader, state: _State, header: Any, const_add: int) -> None:
    if opcode == COPY:
        state.add_row()
    elif opcode == ADVANCE_PC:
        state.address += reader.uleb() * header.minimum_instruction_length
    elif opcode == ADVANCE_LINE:
        state.line += reader.sleb()
    elif opcode == SET_FILE:
        state.file = reader.uleb()
    elif opcode == CONST_ADD_PC:
        state.address += const_add
    elif opcode == FIXED_ADVANCE_PC:
        state.address += reader.fixed("<H")
    else:  # columns, statements, prologues, and opcodes that are not known yet
        for _ in range(header.standard_opcode_lengths[opcode - 1]):
            reader.uleb()


def _extended(reader: Reader, state: _State, sequences: list[Sequence]) -> None:
    size = reader.uleb()
    after = reader.at + size
    opcode = reader.byte() if size else 0
    if opcode == SET_ADDRESS:
        state.address = int.from_bytes(reader.content[reader.at : after], "little")
    elif opcode == END_SEQUENCE:
        if state.addresses:
            found = Sequence(state.addresses[0], state.address, state.addresses, state.rows)
            sequences.append(found)
        state.reset()
    reader.at = after
