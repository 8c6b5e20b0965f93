"""Lanes to other places: unpacking, shuffles, shifts by bytes, insertion, blends, widening."""

from __future__ import annotations

from collections.abc import Callable

from trapline.processor.isa.sse_shared import combine, enter, fetch, insert, put, shuffle, zeros
from trapline.processor.language import Cpu, Operand, Value, const, instruction


def _immediate(cpu: Cpu) -> int:
    return cpu.form.immediate or 0


def _interleave(lane: int, high: bool) -> Callable[[Cpu, Operand, Operand], None]:
    def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """One half of each operand, lane about lane."""
        enter(cpu, dst)
        right = fetch(cpu, src, dst.width).zero_extend(dst.width)  # PUNPCKL mm, m32
        count = dst.width // lane
        start = count // 2 if high else 0
        indices = [j for i in range(start, start + count // 2) for j in (i, i + count)]
        put(cpu, dst, shuffle(cpu, lane, indices, dst.get(), right))

    return description


for _name, _lane, _high, _opcode in (
    ("punpcklbw", 8, False, "NP/66 0F 60 /r"),
    ("punpcklwd", 16, False, "NP/66 0F 61 /r"),
    ("punpckldq", 32, False, "NP/66 0F 62 /r"),
    ("punpcklqdq", 64, False, "66 0F 6C /r"),
    ("punpckhbw", 8, True, "NP/66 0F 68 /r"),
    ("punpckhwd", 16, True, "NP/66 0F 69 /r"),
    ("punpckhdq", 32, True, "NP/66 0F 6A /r"),
    ("punpckhqdq", 64, True, "66 0F 6D /r"),
    ("unpcklps", 32, False, "NP 0F 14 /r"),
    ("unpckhps", 32, True, "NP 0F 15 /r"),
    ("unpcklpd", 64, False, "66 0F 14 /r"),
    ("unpckhpd", 64, True, "66 0F 15 /r"),
):
    instruction(_opcode, name=_name)(_interleave(_lane, _high))


def _four(immediate: int, first: int = 0) -> list[int]:
    """Four lane numbers of two bits each."""
    return [first + (immediate >> 2 * i & 3) for i in range(4)]


@instruction("66 0F 70 /r ib")
def pshufd(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
    """Any four lanes of 32 bits."""
    dst.set(shuffle(cpu, 32, _four(_immediate(cpu)), fetch(cpu, src, 128)))


@instruction("NP 0F 70 /r ib")
def pshufw(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
    """Any four words of an MMX register."""
    enter(cpu, dst)
    put(cpu, dst, shuffle(cpu, 16, _four(_immediate(cpu)), fetch(cpu, src, 64)))


@instruction("F2 0F 70 /r ib")
def pshuflw(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
    """Any four of the low words; the high half is copied."""
    indices = [*_four(_immediate(cpu)), 4, 5, 6, 7]
    dst.set(shuffle(cpu, 16, indices, fetch(cpu, src, 128)))


@instruction("F3 0F 70 /r ib")
def pshufhw(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
    """Any four of the high words; the low half is copied."""
    indices = [0, 1, 2, 3, *_four(_immediate(cpu), 4)]
    dst.set(shuffle(cpu, 16, indices, fetch(cpu, src, 128)))


@instruction("NP 0F C6 /r ib")
def shufps(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
    """Two lanes of dst, two of src."""
    first, second = _four(_immediate(cpu)), _four(_immediate(cpu), 4)
    right = fetch(cpu, src, 128)
    dst.set(shuffle(cpu, 32, first[:2] + second[2:], dst.get(), right))


@instruction("66 0F C6 /r ib")
def shufpd(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
    """One half of dst, one of src."""
    indices = (_immediate(cpu) & 1, 2 + (_immediate(cpu) >> 1 & 1))
    right = fetch(cpu, src, 128)
    dst.set(shuffle(cpu, 64, indices, dst.get(), right))


@instruction("NP/66 0F 38 00 /r")
def pshufb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """Bytes of dst by the numbers in src."""
    combine(
        cpu,
        dst,
        src,
        lambda left, right: cpu.primitive("select_bytes", left, right, widths=(left.width,))[0],
    )


def _bytes_from(cpu: Cpu, start: int, low: Value, high: Value) -> Value:
    """The bytes of high:low from `start` up; beyond them there are zeros."""
    count = low.width // 8
    if start > count:
        low, high = high, zeros(low.width)
        start = min(start - count, count)
    return shuffle(cpu, 8, range(start, start + count), low, high)


@instruction("NP/66 0F 3A 0F /r ib")
def palignr(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
    """dst:src shifted right by bytes."""
    combine(cpu, dst, src, lambda left, right: _bytes_from(cpu, _immediate(cpu), right, left))


@instruction("66 0F 73 /3 ib")
def psrldq(cpu: Cpu, dst: Operand, immediate: Operand) -> None:
    """The register shifted right by bytes."""
    dst.set(_bytes_from(cpu, min(_immediate(cpu), 16), dst.get(), zeros(128)))


@instruction("66 0F 73 /7 ib")
def pslldq(cpu: Cpu, dst: Operand, immediate: Operand) -> None:
    """The register shifted left by bytes."""
    dst.set(_bytes_from(cpu, 16 - min(_immediate(cpu), 16), zeros(128), dst.get()))


def _insert(lane: int) -> Callable[[Cpu, Operand, Operand, Operand], None]:
    def description(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
        """One lane := the low bits of a general register, or memory."""
        enter(cpu, dst)
        number = fetch(cpu, src, lane)
        index = _immediate(cpu) & dst.width // lane - 1
        put(cpu, dst, insert(cpu, lane, index, dst.get(), number))

    return description


def _extract(lane: int) -> Callable[[Cpu, Operand, Operand, Operand], None]:
    def description(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
        """One lane to a general register, zero-extended, or to memory."""
        enter(cpu, src)
        index = _immediate(cpu) & src.width // lane - 1
        dst.set(src.get().bits(lane * index, lane).zero_extend(dst.width))

    return description


instruction("66 0F 3A 20 /r ib", name="pinsrb")(_insert(8))
instruction("NP/66 0F C4 /r ib", name="pinsrw")(_insert(16))
instruction("66 0F 3A 22 /r ib", name="pinsrd")(_insert(32))
instruction("66 REX.W 0F 3A 22 /r ib", name="pinsrq")(_insert(64))
instruction("66 0F 3A 14 /r ib", name="pextrb")(_extract(8))
instruction("NP/66 0F C5 /r ib", "66 0F 3A 15 /r ib", name="pextrw")(_extract(16))
instruction("66 0F 3A 16 /r ib", name="pextrd")(_extract(32))
instruction("66 REX.W 0F 3A 16 /r ib", name="pextrq")(_extract(64))
instruction("66 0F 3A 17 /r ib", name="extractps")(_extract(32))


@instruction("66 0F 3A 21 /r ib")
def insertps(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
    """A lane of src (bits 7:6, of a register) to a lane of dst (5:4); then zeros (3:0)."""
    chosen = _immediate(cpu)
    number = src.get() if src.in_memory else src.get().bits(32 * (chosen >> 6), 32)
    result = insert(cpu, 32, chosen >> 4 & 3, dst.get(), number)
    kept = sum(0xFFFFFFFF << 32 * i for i in range(4) if not chosen >> i & 1)
    dst.set(result & const(kept, 128))


def _blend(lane: int) -> Callable[[Cpu, Operand, Operand, Operand], None]:
    def description(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
        """Lanes of src where the immediate has a one."""
        right = fetch(cpu, src, 128)
        count = 128 // lane
        indices = [i + count * (_immediate(cpu) >> i & 1) for i in range(count)]
        dst.set(shuffle(cpu, lane, indices, dst.get(), right))

    return description


instruction("66 0F 3A 0C /r ib", name="blendps")(_blend(32))
instruction("66 0F 3A 0D /r ib", name="blendpd")(_blend(64))
instruction("66 0F 3A 0E /r ib", name="pblendw")(_blend(16))


def _blend_by_register(lane: int) -> Callable[..., None]:
    def description(cpu: Cpu, dst: Operand, src: Operand, *implied: Operand) -> None:
        """Lanes of src where XMM0 has the top bit."""
        args = (dst.get(), fetch(cpu, src, 128), cpu.xmm(0).get())
        dst.set(cpu.primitive("lanes_choose", *args, widths=(128,), of=(lane,))[0])

    return description


instruction("66 0F 38 10 /r", name="pblendvb")(_blend_by_register(8))
instruction("66 0F 38 14 /r", name="blendvps")(_blend_by_register(32))
instruction("66 0F 38 15 /r", name="blendvpd")(_blend_by_register(64))


def _widen(lane: int, to: int, is_signed: bool) -> Callable[[Cpu, Operand, Operand], None]:
    def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """As many lanes as fit, each extended."""
        value = fetch(cpu, src, 128 // to * lane)
        of = (lane, to, is_signed)
        dst.set(cpu.primitive("lanes_widen", value, widths=(128,), of=of)[0])

    return description


for _i, (_suffix, _lane, _to) in enumerate(
    (("bw", 8, 16), ("bd", 8, 32), ("bq", 8, 64), ("wd", 16, 32), ("wq", 16, 64), ("dq", 32, 64))
):
    instruction(f"66 0F 38 {0x20 + _i:02X} /r", name="pmovsx" + _suffix)(_widen(_lane, _to, True))
    instruction(f"66 0F 38 {0x30 + _i:02X} /r", name="pmovzx" + _suffix)(_widen(_lane, _to, False))
