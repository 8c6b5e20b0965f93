"""REP INS reads ahead: how many elements one exit asks the VMM for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch.paging import PAGE_SIZE

if TYPE_CHECKING:
    from trapline.processor import Decoded, State

_DF: Final = 1 << 10
_READ_AHEAD: Final = 1024  # bytes (struct read_cache)


def inputs_wanted(state: State, instruction: Decoded) -> int:
    """pio_in_emulated(), but not beyond the page of RDI, so that no element that was read is lost
    to a fault: upstream takes the bytes left in the page for elements."""
    if not instruction.form.repeat or not instruction.name.startswith("ins"):
        return 1
    bound = next(one for one in instruction.operands if one.kind == "mem")
    size, mask = bound.width >> 3, (1 << bound.address_width) - 1
    offset = state.rdi % PAGE_SIZE
    in_page = offset if state.system_flags & _DF else PAGE_SIZE - offset
    return max(1, min(in_page, _READ_AHEAD, (state.rcx & mask) * size) // size)
