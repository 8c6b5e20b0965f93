"""Shift counts that matter, and texts that match."""

from __future__ import annotations

from iced_x86 import Register

from tests.against import values
from tests.against.assemble import Memory
from tests.against.draft import Draft
from tests.against.shapes.registry import RAX, RDX, finishes

_R = Register


@finishes(
    "PSLLW", "PSLLD", "PSLLQ", "PSRLW", "PSRLD", "PSRLQ", "PSRAW", "PSRAD", "PSLLDQ",
    "PSRLDQ",
)  # fmt: skip
def _vector_shift(draft: Draft) -> None:
    """A count is 64 bits of which few matter."""
    second = draft.operands[1]
    is_immediate = not isinstance(second, Memory) and not draft.names_register(1)
    if is_immediate or draft.source.random() < 0.25:
        return
    count = values.count(draft.source).to_bytes(8, "little")
    if isinstance(second, Memory):
        draft.content = count + draft.content[8:]
    elif _R.XMM0 <= second <= _R.XMM15:
        number = second - _R.XMM0
        draft.float.xmm[number] = count + draft.float.xmm[number][8:]
    elif _R.MM0 <= second <= _R.MM7:
        _set_mmx(draft, second - _R.MM0, count)


def _set_mmx(draft: Draft, number: int, content: bytes) -> None:
    """MMn is a physical register; the image holds the stack's order."""
    top = draft.float.fsw >> 11 & 7
    place = number - top & 7
    draft.float.st[place] = content + draft.float.st[place][8:]


@finishes("PCMPESTRI", "PCMPESTRM", "PCMPESTRI64", "PCMPESTRM64", "PCMPISTRI", "PCMPISTRM")
def _text(draft: Draft) -> None:
    """Few different characters and short strings, or nothing ever matches."""
    source = draft.source
    size = 16
    alphabet = source.choice((b"ab\0", b"abc", bytes(range(0, 256, 51)), b"\x00\x01\x80\xff"))
    for number in range(16):
        draft.float.xmm[number] = bytes(source.choices(alphabet, k=size))
    if isinstance(draft.operands[1], Memory):
        draft.content = bytes(source.choices(alphabet, k=size))
    for number in (RAX, RDX):
        if draft.is_free(number) and source.random() < 0.8:
            draft.registers[number] = source.randrange(-20, 20) & (1 << draft.form.bits) - 1
