"""Moves between vector registers, general registers and memory, whole and in parts."""

from __future__ import annotations

from collections.abc import Callable

from trapline.processor.isa.mmx import enter_mmx, write_mmx
from trapline.processor.isa.sse_shared import (
    enter,
    fetch,
    insert,
    put_alone,
    put_low,
    require_alignment,
    scalar_move,
    shuffle,
)
from trapline.processor.language import AC, Cpu, Operand, instruction


def _whole(aligned: bool) -> Callable[[Cpu, Operand, Operand], None]:
    def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """128 bits; in memory either anywhere or on a multiple of 16."""
        if dst.in_memory and aligned:
            require_alignment(cpu, dst)
        dst.set(fetch(cpu, src, aligned=aligned))

    return description


for _name, _aligned, _opcodes in (
    ("movaps", True, ("NP 0F 28 /r", "NP 0F 29 /r")),
    ("movapd", True, ("66 0F 28 /r", "66 0F 29 /r")),
    ("movdqa", True, ("66 0F 6F /r", "66 0F 7F /r")),
    ("movups", False, ("NP 0F 10 /r", "NP 0F 11 /r")),
    ("movupd", False, ("66 0F 10 /r", "66 0F 11 /r")),
    ("movdqu", False, ("F3 0F 6F /r", "F3 0F 7F /r")),
    ("lddqu", False, ("F2 0F F0 /r",)),
    # Non-temporal hints say nothing about the result.
    ("movntps", True, ("NP 0F 2B /r",)),
    ("movntpd", True, ("66 0F 2B /r",)),
    ("movntdq", True, ("66 0F E7 /r",)),
    ("movntdqa", True, ("66 0F 38 2A /r",)),
):
    instruction(*_opcodes, name=_name)(_whole(_aligned))


@instruction("NP 0F E7 /r")
def movntq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """An MMX register to memory."""
    enter_mmx(cpu)
    dst.set(src.get())


@instruction("F3 0F 10 /r", "F3 0F 11 /r")
def movss(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """The low 32 bits."""
    scalar_move(cpu, dst, src, 32)


@instruction("NP 0F 6E /r", "NP 0F 7E /r", "66 0F 6E /r", "66 0F 7E /r")
def movd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """32 bits between a vector register and a general register or memory."""
    _quadword(cpu, dst, src, 32)


@instruction(
    "NP 0F 6F /r", "NP 0F 7F /r", "NP REX.W 0F 6E /r", "NP REX.W 0F 7E /r", "66 REX.W 0F 6E /r",
    "66 REX.W 0F 7E /r", "F3 0F 7E /r", "66 0F D6 /r",
)  # fmt: skip
def movq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """64 bits between vector registers, a general register and memory."""
    _quadword(cpu, dst, src, 64)


def _quadword(cpu: Cpu, dst: Operand, src: Operand, width: int) -> None:
    enter(cpu, dst, src)
    value = fetch(cpu, src, width)
    if dst.kind in ("xmm", "mmx"):
        put_alone(cpu, dst, value)
    else:
        dst.set(value)


@instruction("F3 0F D6 /r")
def movq2dq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """MMX to XMM."""
    _quadword(cpu, dst, src, 64)


@instruction("F2 0F D6 /r")
def movdq2q(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """XMM to MMX."""
    enter_mmx(cpu)
    write_mmx(cpu, dst, src.narrowed(64).get())


def _low(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """The low half to or from memory; the other half stays."""
    value = src.narrowed(64).get()
    if dst.in_memory:
        dst.set(value)
    else:
        put_low(cpu, dst, value)


def _high(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """The high half to or from memory; the other half stays."""
    if dst.in_memory:
        dst.set(src.get().bits(64, 64))
    else:
        value = src.get()
        dst.set(insert(cpu, 64, 1, dst.get(), value))


for _suffix, _prefix in (("s", "NP"), ("d", "66")):
    instruction(f"{_prefix} 0F 12 /r", f"{_prefix} 0F 13 /r", name="movlp" + _suffix)(_low)
    instruction(f"{_prefix} 0F 16 /r", f"{_prefix} 0F 17 /r", name="movhp" + _suffix)(_high)


@instruction("NP 0F 12 /r")
def movhlps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """The low half := the source's high half."""
    dst.set(shuffle(cpu, 64, (3, 1), dst.get(), src.get()))


@instruction("NP 0F 16 /r")
def movlhps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """The high half := the source's low half."""
    dst.set(shuffle(cpu, 64, (0, 2), dst.get(), src.get()))


@instruction("F2 0F 12 /r")
def movddup(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """The low 64 bits twice."""
    dst.set(shuffle(cpu, 64, (0, 0), fetch(cpu, src, 64)))


@instruction("F3 0F 12 /r")
def movsldup(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """The even lanes of 32 bits twice."""
    dst.set(shuffle(cpu, 32, (0, 0, 2, 2), fetch(cpu, src)))


@instruction("F3 0F 16 /r")
def movshdup(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """The odd lanes of 32 bits twice."""
    dst.set(shuffle(cpu, 32, (1, 1, 3, 3), fetch(cpu, src)))


def _signs(lane: int) -> Callable[[Cpu, Operand, Operand], None]:
    def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """The top bits of the lanes, in a general register."""
        enter(cpu, src)
        count = src.width // lane
        bits = cpu.primitive("lanes_signs", src.get(), widths=(count,), of=(lane,))[0]
        dst.set(bits.zero_extend(dst.width))

    return description


instruction("NP/66 0F D7 /r", name="pmovmskb")(_signs(8))
instruction("NP 0F 50 /r", name="movmskps")(_signs(32))
instruction("66 0F 50 /r", name="movmskpd")(_signs(64))


def _check_alignment(cpu: Cpu, dst: Operand) -> None:
    """#AC looks at the whole operand, whatever the mask says (measured on AMD's)."""
    is_user = cpu.register("cpl", 8).get().equals(3)
    is_asked = cpu.register("system_flags").get().bit(18) & cpu.register("cr0").get().bit(18)
    is_odd = cpu.linear_address(dst).low(3).differs(0)
    cpu.fault(is_user & is_asked & is_odd, AC, 0)


def _masked(cpu: Cpu, dst: Operand, src: Operand, mask: Operand) -> None:
    """Those bytes of src to [RDI] whose mask byte has its top bit."""
    enter(cpu, src)
    _check_alignment(cpu, dst)
    value, chosen = src.get(), mask.get()
    base = cpu.effective_address(dst)
    for i in range(src.width // 8):
        address = (base + i).low(cpu.form.address_width).zero_extend(64)
        with cpu.when(chosen.bit(8 * i + 7)):
            cpu.memory(dst.index, address, 8).set(value.bits(8 * i, 8))


instruction("NP 0F F7 /r", name="maskmovq")(_masked)
instruction("66 0F F7 /r", name="maskmovdqu")(_masked)
