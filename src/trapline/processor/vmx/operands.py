"""What an exit tells of an instruction's operands: displacement and instruction information.

SDM 3C, "VM-Exit Instruction-Information Field", as the tables for INVEPT, VMCLEAR, VMREAD and
their relatives have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.processor.state import GPR_NAMES, OFFSET, SEGMENTS

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.decode import Bound

HAS_OPERANDS: Final = frozenset(
    {
        *("invept", "invvpid", "invpcid", "vmclear", "vmptrld", "vmptrst", "vmxon"),
        *("vmread", "vmwrite"),
    }
)
_NUMBERS: Final = {OFFSET[name]: number for number, name in enumerate(GPR_NAMES)}
_ADDRESS_SIZES: Final = {16: 0, 32: 1, 64: 2}
_REGISTER, _NO_INDEX, _NO_BASE = 1 << 10, 1 << 22, 1 << 27
_MASK_64: Final = (1 << 64) - 1


def describe(core: Core) -> tuple[int, int]:
    """Exit qualification and instruction information of the instruction about to be done."""
    instruction = core.instruction
    assert instruction is not None
    places = [one for one in instruction.operands if one.kind == "mem"]
    registers = [one for one in instruction.operands if one.kind == "reg"]
    if places:
        other = registers[0].number if registers else 0
        return places[0].displacement & _MASK_64, _of_memory(places[0]) | other << 28
    # VMREAD and VMWRITE between registers: the other one holds the field's encoding.
    first, second = registers if instruction.name == "vmread" else registers[::-1]
    return 0, first.number << 3 | _REGISTER | second.number << 28


def _of_memory(place: Bound) -> int:
    information = place.scale | _ADDRESS_SIZES[place.address_width] << 7
    information |= SEGMENTS.index(place.segment) << 15
    index, base = _NUMBERS.get(place.index), _NUMBERS.get(place.base)
    information |= _NO_INDEX if index is None else index << 18
    return information | (_NO_BASE if base is None else base << 23)
