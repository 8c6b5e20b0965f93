"""Copying and widening: MOV and its relatives, CMOVcc, LEA, XLAT, the sign extensions.

Loading a segment register and the control and debug forms of MOV are microcode.
"""

from __future__ import annotations

from trapline.processor.isa.conditions import CONDITIONS
from trapline.processor.language import UD, Cpu, Operand, const, instruction
from trapline.processor.language.registry import Description

_MICROCODE = {"sreg": "mov_segment", "cr": "mov_cr", "dr": "mov_dr"}


@instruction("88 /r", "89 /r", "8A /r", "8B /r", "8C /r", "8E /r", "A0", "A1", "A2", "A3", "B0+r",
             "B8+r", "C6 /0", "C7 /0", "0F 20 /r", "0F 21 /r", "0F 22 /r", "0F 23 /r")  # fmt: skip
def mov(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := src.  A selector fills the whole of a wider register."""
    if src.kind == "sreg":
        dst.set(src.get().zero_extend(dst.width))
        return
    special = {dst.kind, src.kind} & set(_MICROCODE)
    if special:
        cpu.microcode(_MICROCODE[special.pop()])
    elif "tr" in (dst.kind, src.kind):  # test registers went away with the Pentium
        cpu.fault(const(1, 1), UD)
    else:
        dst.set(src.get())


@instruction("0F C3 /r")
def movnti(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := src, past the caches."""
    dst.set(src.get())


@instruction("0F B6 /r", "0F B7 /r")
def movzx(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := src, zero-extended."""
    dst.set(src.get().zero_extend(dst.width))


@instruction("0F BE /r", "0F BF /r")
def movsx(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := src, sign-extended."""
    dst.set(src.get().sign_extend(dst.width))


@instruction("63 /r")
def movsxd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := src, sign-extended; without REX.W a plain move."""
    dst.set(src.get().sign_extend(dst.width))


def _conditional_move(code: int) -> Description:
    def cmov(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """If the condition holds, dst := src.

        The source is read either way and may fault; a 32-bit destination loses its upper half
        either way.
        """
        incoming, kept = src.get(), dst.get()
        dst.set(cpu.flags.condition(code).select(incoming, kept))

    return cmov


for _code, _condition in enumerate(CONDITIONS):
    instruction(f"0F 4{_code:X} /r", name=f"cmov{_condition}")(_conditional_move(_code))


@instruction("0F C8+r")
def bswap(cpu: Cpu, dst: Operand) -> None:
    """Reverse the bytes of dst.  Of 16 bits the manual leaves the result undefined; Zen gives 0."""
    if dst.width == 16:
        dst.set(const(0, 16))
    else:
        dst.set(dst.get().unary("bswap"))


@instruction("8D /r")
def lea(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := the offset src names; nothing is accessed."""
    dst.set(cpu.effective_address(src).low(dst.width))


@instruction("D7")
def xlatb(cpu: Cpu, table: Operand) -> None:
    """AL := the byte at [RBX + AL], AL unsigned."""
    width = cpu.form.address_width
    accumulator = cpu.register("rax", 8)
    offset = cpu.register("rbx", width).get() + accumulator.get().zero_extend(width)
    accumulator.set(cpu.memory(table.index, offset.zero_extend(64), 8).get())


@instruction("98")
def cbw(cpu: Cpu) -> None:
    """AX := AL, sign-extended."""
    cpu.register("rax", 16).set(cpu.register("rax", 8).get().sign_extend(16))


@instruction("98")
def cwde(cpu: Cpu) -> None:
    """EAX := AX, sign-extended."""
    cpu.register("rax", 32).set(cpu.register("rax", 16).get().sign_extend(32))


@instruction("REX.W 98")
def cdqe(cpu: Cpu) -> None:
    """RAX := EAX, sign-extended."""
    cpu.register("rax", 64).set(cpu.register("rax", 32).get().sign_extend(64))


def _spread_sign(cpu: Cpu, width: int) -> None:
    cpu.register("rdx", width).set(cpu.register("rax", width).get().ashr(width - 1))


@instruction("99")
def cwd(cpu: Cpu) -> None:
    """DX := the sign of AX, in every bit."""
    _spread_sign(cpu, 16)


@instruction("99")
def cdq(cpu: Cpu) -> None:
    """EDX := the sign of EAX, in every bit."""
    _spread_sign(cpu, 32)


@instruction("REX.W 99")
def cqo(cpu: Cpu) -> None:
    """RDX := the sign of RAX, in every bit."""
    _spread_sign(cpu, 64)
