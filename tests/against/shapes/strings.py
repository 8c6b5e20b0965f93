"""String instructions, XLAT and masked moves: where RSI, RDI and RBX point, and how far."""

from __future__ import annotations

from iced_x86 import Mnemonic, OpCodeOperandKind

from tests.against.draft import Draft
from tests.against.layout import DATA, HIGH, READ_ONLY
from tests.against.shapes.registry import (
    RAX,
    RBX,
    RCX,
    RDI,
    RSI,
    address,
    prepares,
    with_garbage,
)
from tests.against.state import AC, DF

_K, _M = OpCodeOperandKind, Mnemonic


def place_runs(draft: Draft) -> None:
    """Point RSI and RDI at runs of elements, and let RCX count them."""
    source = draft.source
    size, down = draft.size, draft.flags & DF != 0
    if source.random() < 0.3:
        down = not down
        draft.flags ^= DF
    count = _string_count(draft)
    draft.pin(RCX, with_garbage(draft, count))
    reached = count if draft.form.prefix else 1
    if _K.SEG_RSI in draft.kinds:
        linear = _run(draft, reached, size, down, writes=False)
        offset = linear - draft.way.segment_base
        draft.pin(RSI, address(draft, offset))
    if _K.ES_RDI in draft.kinds:
        writes = draft.form.mnemonic not in _COMPARING
        linear = _run(draft, reached, size, down, writes=writes, low=draft.way.address_bits == 32)
        draft.pin(RDI, address(draft, linear))
    if draft.form.mnemonic in _COMPARING:
        _make_comparable(draft, reached, size, down)
    elif _K.SEG_RSI in draft.kinds and _K.ES_RDI in draft.kinds and source.random() < 0.25:
        _overlap(draft)


def _string_count(draft: Draft) -> int:
    source = draft.source
    if not draft.form.prefix:
        return source.getrandbits(draft.form.bits)
    if source.random() < 0.1:
        return 0
    return source.randrange(300) if source.random() < 0.1 else source.randrange(1, 24)


def _run(
    draft: Draft, count: int, size: int, down: bool, *, writes: bool, low: bool = False
) -> int:
    """The first element's address of a run of elements, which may run into a forbidden page."""
    source = draft.source
    length = max(count * size, size)
    if not draft.faulty and source.random() < 0.15:
        draft.faulty = True
        done = source.randrange(count + 1) * size + source.randrange(size)
        if down:
            return DATA.linear + done - size
        return (READ_ONLY.linear if writes else READ_ONLY.end) - done
    region = DATA if low or source.random() < 0.7 else HIGH
    start = source.randrange(region.linear, region.end - length + 1)
    if source.random() < 0.3:
        start = source.choice((region.linear, region.end - length))
    return start + length - size if down else start


_COMPARING = frozenset((
    _M.CMPSB, _M.CMPSW, _M.CMPSD, _M.CMPSQ, _M.SCASB, _M.SCASW, _M.SCASD, _M.SCASQ,
))  # fmt: skip


def _make_comparable(draft: Draft, count: int, size: int, down: bool) -> None:
    """Equal for a while, or different for a while, so that REPE and REPNE go on."""
    source = draft.source
    pattern = source.randbytes(size)
    count = min(count, 64)
    same = draft.form.prefix == "rep" or source.random() < 0.3
    turn = source.randrange(count + 2)
    left, right = [], []
    for number in range(count):
        equal = same if number != turn else not same
        element = pattern if _K.SEG_RSI not in draft.kinds else source.randbytes(size)
        left.append(element)
        right.append(element if equal else source.randbytes(size))
    if down:
        left.reverse()
        right.reverse()
    back = (count - 1) * size if down else 0
    if _K.SEG_RSI in draft.kinds:
        _lay(draft, RSI, draft.way.segment_base, -back, left)
    elif draft.is_free(RAX):
        draft.pin(RAX, int.from_bytes(pattern + source.randbytes(8 - size), "little"))
    _lay(draft, RDI, 0, -back, right)


def _lay(draft: Draft, number: int, base: int, displacement: int, elements: list[bytes]) -> None:
    offset = draft.registers[number] & (1 << draft.way.address_bits) - 1
    if elements:
        draft.memory.append((base + offset + displacement, b"".join(elements)))


def _overlap(draft: Draft) -> None:
    if not draft.faulty and draft.way.segment_base == 0:
        near = draft.registers[RSI] + draft.source.randrange(-24, 25)
        if DATA.linear + 0x400 < near & 0xFFFF_FFFF < DATA.end - 0x400:
            draft.pin(RDI, near)


@prepares("XLATB")
def _xlat(draft: Draft) -> None:
    linear = draft.put(1, writes=False)
    base = linear - draft.way.segment_base - (draft.registers[RAX] & 0xFF)
    draft.pin(RBX, address(draft, base))
    draft.pinned.add(RAX)


@prepares("MASKMOVQ", "MASKMOVDQU")
def _masked_move(draft: Draft) -> None:
    """Calm: whether a fault is taken for bytes that are masked off is left open (SDM 2)."""
    draft.faulty = True
    draft.flags &= ~AC
    size = 8 if draft.form.mnemonic == _M.MASKMOVQ else 16
    linear = draft.put(size, writes=True)
    draft.pin(RDI, address(draft, linear - draft.way.segment_base))
