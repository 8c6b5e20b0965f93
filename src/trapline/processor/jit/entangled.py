"""Instructions two of whose register places are one register: XCHG AH,AL; CMPXCHG EAX,ECX; POP SP.

A handler keeps writes apart by operand until it commits them, which is right only while they are
of different registers.  The others are for the reference engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from trapline.processor.language import (
    Effect,
    FormFacts,
    Place,
    Read,
    Repeat,
    When,
    Write,
    recording,
)
from trapline.processor.state import OFFSET, XMM_OFFSET

if TYPE_CHECKING:
    from trapline.processor.decode import Decoded

Name = int | str  # an operand's number, or the name of a slot or of a vector register


@dataclass(frozen=True, slots=True)
class _Access:
    name: Name
    is_write: bool
    is_whole: bool  # replaces all of the register, whatever was written before


def is_entangled(instruction: Decoded) -> bool:
    """Whether a register is written under one name and then used under another."""
    accesses = _accesses(instruction.form)
    if not accesses:
        return False
    registers: dict[Name, int] = {}
    for access in accesses:
        name = access.name
        if isinstance(name, int):
            registers[name] = instruction.operands[name].offset & ~7
        else:
            registers[name] = _location(name)
    return _conflict(accesses, registers)


def _location(name: str) -> int:
    return XMM_OFFSET + 16 * int(name[3:]) if name.startswith("xmm") else OFFSET[name]


def _conflict(accesses: tuple[_Access, ...], registers: dict[Name, int]) -> bool:
    written: dict[int, set[Name]] = {}
    for access in accesses:
        writers = written.setdefault(registers[access.name], set())
        if writers - {access.name} and not access.is_whole:
            return True
        if access.is_whole:
            writers.clear()
        if access.is_write:
            writers.add(access.name)
    return False


@cache
def _accesses(form: FormFacts) -> tuple[_Access, ...]:
    """The register accesses in order; none if no choice of operands can entangle them."""
    accesses: list[_Access] = []
    _collect(form, recording(form), accesses, conditional=False)
    found = tuple(accesses)
    slots = {access.name for access in found if isinstance(access.name, str)}
    # Operands may be any register: let each slot in turn be the one that they all are.
    for one in slots | {""}:
        registers = {
            access.name: 0 if isinstance(access.name, int) or access.name == one else 1 + i
            for i, access in enumerate(found)
        }
        if _conflict(found, registers):
            return found
    return ()


def _collect(
    form: FormFacts, effects: list[Effect], accesses: list[_Access], conditional: bool
) -> None:
    for effect in effects:
        match effect:
            case Read(_, place):
                _add(form, place, accesses, False, False)
            case Write(place, _):
                width = 128 if place.kind == "xmm" or _kind(form, place) == "xmm" else 32
                _add(form, place, accesses, True, not conditional and place.width >= width)
            case When(_, inner):
                _collect(form, inner, accesses, True)
            case Repeat(_, inner, _):
                _collect(form, inner, accesses, conditional)


def _kind(form: FormFacts, place: Place) -> str:
    return form.operands[place.index].kind if place.kind == "operand" else ""


def _add(
    form: FormFacts, place: Place, accesses: list[_Access], is_write: bool, is_whole: bool
) -> None:
    name: Name
    if place.kind == "operand" and _kind(form, place) in ("reg", "xmm"):
        name = place.index
    elif place.kind == "register":
        name = place.name
    elif place.kind == "xmm":
        name = f"xmm{place.index}"
    else:
        return
    accesses.append(_Access(name, is_write, is_whole))
