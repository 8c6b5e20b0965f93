"""Input and output: IN, OUT, INS, OUTS."""

from __future__ import annotations

from trapline.processor.language import Cpu, Operand, instruction


@instruction("E4", "E5", "EC", "ED", name="in")
def in_(cpu: Cpu, dst: Operand, port: Operand) -> None:
    """The accumulator := what the port gives."""
    cpu.microcode("in")


@instruction("E6", "E7", "EE", "EF")
def out(cpu: Cpu, port: Operand, src: Operand) -> None:
    """The port takes the accumulator."""
    cpu.microcode("out")


def _ins(cpu: Cpu, *operands: Operand) -> None:
    """[ES:RDI] := what the port of DX gives; RDI moves on."""
    cpu.microcode("ins")


def _outs(cpu: Cpu, *operands: Operand) -> None:
    """The port of DX takes [RSI]; RSI moves on."""
    cpu.microcode("outs")


for _suffix, _opcodes in (("b", "6C"), ("w", "6D"), ("d", "6D")):
    instruction(_opcodes, name=f"ins{_suffix}")(_ins)
for _suffix, _opcodes in (("b", "6E"), ("w", "6F"), ("d", "6F")):
    instruction(_opcodes, name=f"outs{_suffix}")(_outs)
