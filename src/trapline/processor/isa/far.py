"""Far returns and far pointers.  Far JMP and CALL are forms of JMP and CALL."""

from __future__ import annotations

from trapline.processor.language import Cpu, Operand, instruction


@instruction("CB", "CA iw")
def retf(cpu: Cpu, *released: Operand) -> None:
    """Pop RIP and CS, from an inner ring RSP and SS too."""
    cpu.microcode("retf")


def _load_far_pointer(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """Segment register and dst := the far pointer at src."""
    cpu.microcode("load_far_pointer")


for _name, _opcode in (
    ("les", "C4 /r"),
    ("lds", "C5 /r"),
    ("lss", "0F B2 /r"),
    ("lfs", "0F B4 /r"),
    ("lgs", "0F B5 /r"),
):
    instruction(_opcode, name=_name)(_load_far_pointer)
