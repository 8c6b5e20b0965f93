"""Which variable, and which field of it, an address lies in, from DWARF's types.

Works on DIEs that `source` has found; globals by their address, locals by where their frame is.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from trapline.trace.cfi import Reader
from trapline.trace.model import FrameBases

if TYPE_CHECKING:
    from elftools.dwarf.die import DIE

SAME_TYPE = {
    "DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type",
    "DW_TAG_atomic_type",
}  # fmt: skip
STRUCTS = {"DW_TAG_structure_type", "DW_TAG_class_type", "DW_TAG_union_type"}
VARIABLES = {"DW_TAG_variable", "DW_TAG_formal_parameter"}
CALL_FRAME_CFA, FBREG, BREG_RBP, BREG_RSP = 0x9C, 0x91, 0x76, 0x77
PLUS_UCONST = 0x23
OP_ADDR, TLS = 0x03, 0x9B  # DW_OP_addr, DW_OP_form_tls_address
TLS_ADDRESS = (TLS, 0xE0)  # and DW_OP_GNU_push_tls_address
CONSTANTS = {0x0C: 4, 0x0E: 8}  # DW_OP_const4u, DW_OP_const8u
NAMED_SCOPES = STRUCTS | {"DW_TAG_namespace"}
CODE_SCOPES = {
    "DW_TAG_subprogram", "DW_TAG_lexical_block", "DW_TAG_inlined_subroutine",
    "DW_TAG_try_block", "DW_TAG_catch_block",
}  # fmt: skip
DEEPEST = 16


class Field(NamedTuple):
    """A variable or a part of it, as one would write it in C."""

    path: str  # "table[1].hits"
    start: int  # of the address in the whole variable
    steps: tuple[Step, ...] = ()  # from the whole variable inwards


class Step(NamedTuple):
    """A member of a struct, on the way to a field."""

    path: str  # up to and with the member
    struct: str | None
    offset: int  # of the member in the struct


class Variable(NamedTuple):
    """What a unit knows of a variable whose address never changes."""

    die: DIE
    name: str  # with its namespaces and classes


def static_variables(unit: DIE, size: int, in_code: bool) -> dict[tuple[int, int], Variable]:
    """A unit's variables by operation and number of their location: in namespaces and classes,
    or those of its functions (`in_code`).  `size`: of addresses."""
    found: dict[tuple[int, int], Variable] = {}
    _collect(unit, "", size, in_code, found)
    return found


def declared_variable(unit: DIE, name: str, size: int) -> Variable | None:
    """A variable by its name, whose address this unit does not say: it is another's."""
    for die in unit.iter_children():
        if die.tag != "DW_TAG_variable" or _name(die) != name:
            continue
        if _static_address(_expression(die, "DW_AT_location"), size) is None:
            return Variable(die, name)
    return None


def global_field(variable: Variable, offset: int) -> Field | None:
    """The part of a variable that begins at an offset into it."""
    return _part(variable.name, _type(variable.die), offset)


def _collect(
    parent: DIE, around: str, size: int, in_code: bool, found: dict[tuple[int, int], Variable]
) -> None:
    is_code = parent.tag in CODE_SCOPES
    for die in parent.iter_children():
        if die.tag == "DW_TAG_variable" and is_code == in_code:
            where = _static_address(_expression(die, "DW_AT_location"), size)
            name = _name(die)
            if where is not None and name is not None:
                found.setdefault(where, Variable(die, _scope_of_declaration(die, around) + name))
        elif die.tag in NAMED_SCOPES and die.has_children:
            name = _text(die, "DW_AT_name")
            _collect(die, f"{around}{name}::" if name else around, size, in_code, found)
        elif die.tag in CODE_SCOPES and die.has_children and in_code:
            _collect(die, "", size, in_code, found)


def _scope_of_declaration(die: DIE, around: str) -> str:
    """What stands before its name; a definition may stand outside its class or namespace."""
    if "DW_AT_specification" not in die.attributes:
        return around
    parent = die.get_DIE_from_attribute("DW_AT_specification").get_parent()
    names = []
    while parent is not None and parent.tag in NAMED_SCOPES:
        name = _text(parent, "DW_AT_name")
        names += [name] if name else []
        parent = parent.get_parent()
    return "".join(f"{name}::" for name in reversed(names))


def _static_address(location: bytes, size: int) -> tuple[int, int] | None:
    """(operation, number) of DW_OP_addr, or of the constant that DW_OP_form_tls_address takes."""
    if location[:1] == bytes([OP_ADDR]) and len(location) == size + 1:
        return OP_ADDR, int.from_bytes(location[1:], "little")
    is_local = len(location) > 2 and location[-1] in TLS_ADDRESS
    if is_local and CONSTANTS.get(location[0]) == len(location) - 2:
        return TLS, int.from_bytes(location[1:-1], "little")
    return None


def local_field(chain: list[DIE], bases: FrameBases, linear: int) -> Field | None:
    """The part of a local variable at an address, in the frame of this chain of functions."""
    if not chain:
        return None
    starts = {BREG_RBP: bases.rbp, BREG_RSP: bases.rsp}
    if _expression(chain[0], "DW_AT_frame_base") == bytes([CALL_FRAME_CFA]):
        starts[FBREG] = bases.cfa
    for scope in (*reversed(chain), *_scopes(chain[0])):
        for die in scope.iter_children():
            name = _name(die) if die.tag in VARIABLES else None
            location = _expression(die, "DW_AT_location") if name is not None else b""
            start = starts.get(location[0]) if location else None
            kind = _type(die) if start is not None else None
            if name is None or start is None or kind is None:
                continue
            offset = linear - start - Reader(location, 1).sleb()
            if 0 <= offset < (_size(kind) or 0):
                return _part(name, kind, offset)
    return None


def _scopes(function: DIE) -> Iterator[DIE]:
    """A function and the blocks and inlined calls in it."""
    yield function
    for die in function.iter_children():
        if die.tag in ("DW_TAG_lexical_block", "DW_TAG_inlined_subroutine"):
            yield from _scopes(die)


def _part(path: str, kind: DIE | None, offset: int) -> Field | None:
    """Walk down into structs and arrays as far as they go."""
    steps: list[Step] = []
    start = offset
    for _ in range(DEEPEST):
        if kind is None:
            return None
        if kind.tag in STRUCTS:
            member = _member(kind, offset)
            if member is None:
                break
            name, kind_of_member, inside = member
            if name:
                path += f".{name}"
            if kind.tag != "DW_TAG_union_type":
                steps.append(Step(path, _text(kind, "DW_AT_name"), inside))
            kind, offset = kind_of_member, offset - inside
        elif kind.tag == "DW_TAG_array_type":
            element, counts = _type(kind), _counts(kind)
            size = _size(element) if element is not None else None
            if not size or not counts:
                break
            path += _subscripts(offset // size, counts)
            kind, offset = element, offset % size
        else:
            break
    if offset:
        path += f"+{offset}"
    return Field(path, start, tuple(steps))


def _member(struct: DIE, offset: int) -> tuple[str, DIE, int] | None:
    """(name, type, start) of the member that holds an offset; the first of a union's."""
    for die in struct.iter_children():
        if die.tag not in ("DW_TAG_member", "DW_TAG_inheritance"):
            continue
        kind, start = _type(die), _member_start(die)
        if kind is not None and start <= offset < start + (_size(kind) or 0):
            return _text(die, "DW_AT_name") or "", kind, start
    return None


def _member_start(die: DIE) -> int:
    """Where a member begins; DWARF 2 says so by an expression that adds it."""
    location = die.attributes.get("DW_AT_data_member_location")
    start = location.value if location is not None else 0
    if isinstance(start, int):
        return start
    return Reader(bytes(start), 1).uleb() if start[:1] == [PLUS_UCONST] else 0


def _type(die: DIE) -> DIE | None:
    """The type of a variable, member or array, without names and qualifiers around it."""
    for _ in range(DEEPEST):
        if "DW_AT_type" not in die.attributes and "DW_AT_abstract_origin" in die.attributes:
            die = die.get_DIE_from_attribute("DW_AT_abstract_origin")
        elif "DW_AT_type" not in die.attributes and "DW_AT_specification" in die.attributes:
            die = die.get_DIE_from_attribute("DW_AT_specification")
        elif "DW_AT_type" not in die.attributes:
            return None
        else:
            die = die.get_DIE_from_attribute("DW_AT_type")
            if die.tag not in SAME_TYPE:
                return die
    return None


def _size(kind: DIE) -> int | None:
    size = kind.attributes.get("DW_AT_byte_size")
    if size is not None:
        return int(size.value)
    if kind.tag == "DW_TAG_array_type":
        element = _type(kind)
        one = _size(element) if element is not None else None
        counts = _counts(kind)
        return one * prod(counts) if one and counts else None
    return None


def _counts(array: DIE) -> list[int]:
    """How many elements each dimension has; empty where that is not constant."""
    counts = []
    for die in array.iter_children():
        if die.tag != "DW_TAG_subrange_type":
            continue
        count = die.attributes.get("DW_AT_count")
        last = die.attributes.get("DW_AT_upper_bound")
        if count is not None and isinstance(count.value, int):
            counts.append(count.value)
        elif last is not None and isinstance(last.value, int):
            counts.append(last.value + 1)
        else:
            return []
    return counts


def _subscripts(index: int, counts: list[int]) -> str:
    found = []
    for count in reversed(counts[1:]):
        index, rest = divmod(index, max(count, 1))
        found.append(rest)
    return "".join(f"[{number}]" for number in (index, *reversed(found)))


def _name(die: DIE) -> str | None:
    for _ in range(4):
        if "DW_AT_name" in die.attributes:
            return _text(die, "DW_AT_name")
        link = next(
            (n for n in ("DW_AT_abstract_origin", "DW_AT_specification") if n in die.attributes),
            None,
        )
        if link is None:
            return None
        die = die.get_DIE_from_attribute(link)
    return None


def _text(die: DIE, attribute: str) -> str | None:
    found = die.attributes.get(attribute)
    return found.value.decode("utf-8", "replace") if found is not None else None


def _expression(die: DIE, attribute: str) -> bytes:
    """A DWARF expression that stands in the DIE itself; empty for location lists."""
    found = die.attributes.get(attribute)
    content: Any = found.value if found is not None else b""
    return bytes(content) if isinstance(content, list | bytes) else b""
