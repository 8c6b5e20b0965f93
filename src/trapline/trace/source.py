"""Which source line and which chain of inlined functions an address came from, from DWARF 2-5.

Addresses are link-time addresses of one image; paths are as the compiler wrote them.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DWARFInfo
from elftools.dwarf.ranges import BaseAddressEntry
from elftools.elf.elffile import ELFFile

from trapline.trace.image import Image
from trapline.trace.lines import Lines, text_of
from trapline.trace.model import FrameBases
from trapline.trace.symbols import Symbol
from trapline.trace.variables import (
    OP_ADDR,
    TLS,
    Field,
    Variable,
    declared_variable,
    global_field,
    local_field,
    static_variables,
)

SCOPES = {"DW_TAG_namespace", "DW_TAG_class_type", "DW_TAG_structure_type", "DW_TAG_union_type"}
INNER = {"DW_TAG_lexical_block", "DW_TAG_try_block", "DW_TAG_catch_block"}
# What pyelftools raises on DWARF it cannot follow (a missing alternate file, damage).
DWARF_ERRORS = (DWARFError, ELFError, KeyError, IndexError, ValueError, AttributeError, TypeError,
                AssertionError, OSError, NotImplementedError)  # fmt: skip


class Position(NamedTuple):
    """A function and the line in it; `is_inlined` if its code stands in the next one's."""

    function: str | None
    file: str | None
    line: int | None
    is_inlined: bool = False


class Source:
    """Line numbers and inlined calls of one image; empty where it has no DWARF."""

    def __init__(self, image: Image) -> None:
        self._dwarf = _open(image.debug) if image.debug is not None else None
        self._units = _UnitIndex(self._dwarf) if self._dwarf is not None else None
        self._unit_cache: dict[int, _Unit] = {}
        self.positions = lru_cache(4096)(self._positions)

    def global_field(
        self, vaddr: int, symbol: Symbol, offset: int, is_thread_local: bool = False
    ) -> tuple[str, Field] | None:
        """(name, part) of a global at an offset into it, by what the unit of `vaddr` knows."""
        unit = self._unit_of(vaddr)
        try:
            variable = unit.variable(symbol, is_thread_local) if unit else None
            field = global_field(variable, offset) if variable is not None else None
            return (variable.name, field) if variable is not None and field is not None else None
        except DWARF_ERRORS:
            return None

    def local_field(self, vaddr: int, bases: FrameBases, linear: int) -> Field | None:
        """The part of a local variable of the code at `vaddr` that is at an address."""
        unit = self._unit_of(vaddr)
        try:
            return local_field(unit.chain(vaddr), bases, linear) if unit else None
        except DWARF_ERRORS:
            return None

    def _positions(self, vaddr: int) -> tuple[Position, ...]:
        """The line of an address, innermost inlined function first; empty where unknown."""
        unit = self._unit_of(vaddr)
        return tuple(unit.positions(vaddr)) if unit is not None else ()

    def _unit_of(self, vaddr: int) -> _Unit | None:
        if self._dwarf is None or self._units is None:
            return None
        try:
            offset = self._units.find(vaddr)
            if offset is None:
                return None
            if offset not in self._unit_cache:
                self._unit_cache[offset] = _Unit(self._dwarf, offset)
            return self._unit_cache[offset]
        except DWARF_ERRORS:
            return None


def _open(debug: Image) -> DWARFInfo | None:
    elf = debug.elf
    if debug.path:
        elf.stream_loader = ELFFile.make_relative_loader(os.path.realpath(debug.path))
    for follow in (True, False):  # the DWZ file it points at is often not installed
        try:
            return elf.get_dwarf_info(follow_links=follow)
        except DWARF_ERRORS:
            continue
    return None


class _UnitIndex:
    """Which compilation unit holds an address: .debug_aranges, then the units' own ranges."""

    def __init__(self, dwarf: DWARFInfo) -> None:
        self._dwarf = dwarf
        aranges = dwarf.get_aranges()
        found = aranges._get_entries() if aranges is not None else []
        self._listed = {entry.info_offset for entry in found}
        self._ranges = sorted((e.begin_addr, e.begin_addr + e.length, e.info_offset) for e in found)
        self._is_complete = False

    def find(self, vaddr: int) -> int | None:
        """The offset of the unit, or None."""
        offset = self._search(vaddr)
        if offset is None and not self._is_complete:
            self._is_complete = True
            self._ranges = sorted(self._ranges + list(self._unlisted()))
            offset = self._search(vaddr)
        return offset

    def _search(self, vaddr: int) -> int | None:
        at = bisect.bisect_right(self._ranges, (vaddr, 1 << 64, 0)) - 1
        for index in range(at, max(at - 8, -1), -1):  # ranges of LTO units may nest
            if self._ranges[index][0] <= vaddr < self._ranges[index][1]:
                return self._ranges[index][2]
        return None

    def _unlisted(self) -> Iterator[tuple[int, int, int]]:
        for unit in self._dwarf.iter_CUs():
            if unit.cu_offset in self._listed:
                continue
            try:
                for low, high in _ranges(unit.get_top_DIE(), self._dwarf):
                    yield low, high, unit.cu_offset
            except DWARF_ERRORS:
                continue


class _Unit:
    """One compilation unit: its line table and its functions, read when first asked."""

    def __init__(self, dwarf: DWARFInfo, offset: int) -> None:
        self._dwarf = dwarf
        self._unit: CompileUnit = dwarf._parse_CU_at_offset(offset)
        self._lines: Lines | None = None
        self._functions: list[tuple[int, int, DIE]] | None = None
        self._nested: list[tuple[int, int, DIE]] | None = None
        self._variables: dict[bool, dict[tuple[int, int], Variable]] = {}

    def variable(self, symbol: Symbol, is_thread_local: bool) -> Variable | None:
        """The variable that a symbol stands for.  Functions, of which there are many, last."""
        where = (TLS if is_thread_local else OP_ADDR, symbol.value)
        top, size = self._unit.get_top_DIE(), int(self._unit["address_size"])
        for in_code in (False, True):
            if in_code not in self._variables:
                self._variables[in_code] = static_variables(top, size, in_code)
            found = self._variables[in_code].get(where)
            if found is None and not in_code:
                found = declared_variable(top, symbol.name, size)
            if found is not None:
                return found
        return None

    def positions(self, vaddr: int) -> list[Position]:
        try:
            if self._lines is None:
                self._lines = Lines(self._dwarf, self._unit)
            file, line = self._lines.at(vaddr)
        except DWARF_ERRORS:
            file, line = None, None
        try:
            chain = self.chain(vaddr)
        except DWARF_ERRORS:
            chain = []
        if not chain:
            return [Position(None, file, line)] if file else []
        found = []
        for die in reversed(chain):
            is_inlined = die is not chain[0]
            found.append(Position(_name(die), file, line, is_inlined))
            if is_inlined:
                file, line = self._call_site(die)
        return found

    def _call_site(self, die: DIE) -> tuple[str | None, int | None]:
        number, line = die.attributes.get("DW_AT_call_file"), die.attributes.get("DW_AT_call_line")
        file = self._lines.file(number.value) if number is not None and self._lines else None
        return file, line.value if line is not None else None

    def chain(self, vaddr: int) -> list[DIE]:
        """The function that holds the address, then the inlined calls, outermost first."""
        if self._functions is None:
            self._functions = list(self._outer_functions(self._unit.get_top_DIE()))
        function = _narrowest(self._functions, vaddr)
        if function is None:  # of a class or a function inside another function
            if self._nested is None:
                self._nested = list(self._all_functions())
            function = _narrowest(self._nested, vaddr)
        if function is None:
            return []
        chain = [function]
        self._descend(function, vaddr, chain)
        return chain

    def _outer_functions(self, parent: DIE) -> Iterator[tuple[int, int, DIE]]:
        """The functions at the outer level; skipping their insides is what makes this quick."""
        for die in parent.iter_children():
            if die.tag == "DW_TAG_subprogram":
                for low, high in _ranges(die, self._dwarf):
                    yield low, high, die
            elif die.tag in SCOPES and die.has_children:
                yield from self._outer_functions(die)

    def _all_functions(self) -> Iterator[tuple[int, int, DIE]]:
        for die in self._unit.iter_DIEs():
            if die.tag == "DW_TAG_subprogram":
                for low, high in _ranges(die, self._dwarf):
                    yield low, high, die

    def _descend(self, parent: DIE, vaddr: int, chain: list[DIE]) -> bool:
        for die in parent.iter_children():
            is_call = die.tag == "DW_TAG_inlined_subroutine"
            if not is_call and die.tag not in INNER:
                continue
            ranges = list(_ranges(die, self._dwarf))
            if any(low <= vaddr < high for low, high in ranges):
                if is_call:
                    chain.append(die)
                self._descend(die, vaddr, chain)
                return True
            if not ranges and not is_call and self._descend(die, vaddr, chain):
                return True
        return False


def _narrowest(functions: list[tuple[int, int, DIE]], vaddr: int) -> DIE | None:
    holding = [(high - low, die) for low, high, die in functions if low <= vaddr < high]
    return min(holding, key=lambda entry: entry[0])[1] if holding else None


def _ranges(die: DIE, dwarf: DWARFInfo) -> Iterator[tuple[int, int]]:
    """The address ranges of a DIE (DWARF 5, "Code Addresses, Ranges and Base Addresses")."""
    low = die.attributes.get("DW_AT_low_pc")
    high = die.attributes.get("DW_AT_high_pc")
    if low is not None and high is not None:
        end = high.value if high.form.startswith("DW_FORM_addr") else low.value + high.value
        if end > low.value:
            yield low.value, end
        return
    listed = die.attributes.get("DW_AT_ranges")
    lists = dwarf.range_lists() if listed is not None else None
    if listed is None or lists is None:
        return
    top = die.cu.get_top_DIE().attributes.get("DW_AT_low_pc")
    base = top.value if top is not None else 0
    unit: Any = die.cu
    for entry in lists.get_range_list_at_offset(listed.value, unit):
        if isinstance(entry, BaseAddressEntry):
            base = entry.base_address
        else:
            shift = 0 if entry.is_absolute else base
            if entry.end_offset > entry.begin_offset:
                yield entry.begin_offset + shift, entry.end_offset + shift


def _name(die: DIE) -> str | None:
    """The function's name with its namespaces, classes and functions around it, or None."""
    for _ in range(4):  # inlined call -> abstract instance -> declaration in its class
        if "DW_AT_specification" in die.attributes:
            die = die.get_DIE_from_attribute("DW_AT_specification")
        elif "DW_AT_name" in die.attributes:
            break
        elif "DW_AT_abstract_origin" in die.attributes:
            die = die.get_DIE_from_attribute("DW_AT_abstract_origin")
    name = die.attributes.get("DW_AT_name")
    if name is None and die.tag not in SCOPES:
        return None
    own = text_of(name.value) if name is not None else "(anonymous)"
    parent = die.get_parent()
    is_inside = parent is not None and parent.tag in SCOPES | {"DW_TAG_subprogram"}
    around = _name(parent) if parent is not None and is_inside else None
    return f"{around}::{own}" if around else own
