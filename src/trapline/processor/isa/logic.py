"""AND, OR, XOR, NOT, TEST.  CF and OF become 0; AF, undefined in the manual, 0 as on Zen."""

from __future__ import annotations

from trapline.processor.language import Cpu, Operand, instruction


@instruction("20 /r", "21 /r", "22 /r", "23 /r", "24", "25", "80 /4", "81 /4", "83 /4",
             lock="allowed")  # fmt: skip
def and_(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := dst and src."""
    mask = src.get()
    before = dst.update(lambda old: old & mask)
    cpu.flags.after_logic(before & mask)


@instruction("08 /r", "09 /r", "0A /r", "0B /r", "0C", "0D", "80 /1", "81 /1", "83 /1",
             lock="allowed")  # fmt: skip
def or_(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := dst or src."""
    mask = src.get()
    before = dst.update(lambda old: old | mask)
    cpu.flags.after_logic(before | mask)


@instruction("30 /r", "31 /r", "32 /r", "33 /r", "34", "35", "80 /6", "81 /6", "83 /6",
             lock="allowed")  # fmt: skip
def xor(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := dst xor src."""
    mask = src.get()
    before = dst.update(lambda old: old ^ mask)
    cpu.flags.after_logic(before ^ mask)


@instruction("F6 /2", "F7 /2", lock="allowed")
def not_(cpu: Cpu, dst: Operand) -> None:
    """dst := not dst; no flag changes."""
    dst.update(lambda old: ~old)


@instruction("84 /r", "85 /r", "A8", "A9", "F6 /0", "F7 /0")
def test(cpu: Cpu, left: Operand, right: Operand) -> None:
    """The flags of left and right."""
    cpu.flags.after_logic(left.get() & right.get())
