"""The instructions of VMX and SVM, and MONITOR and MWAIT: what guests leave by.

Each is microcode; which processor has it, and in which mode, is checked there.
"""

from __future__ import annotations

from trapline.processor.language import Cpu, Operand, instruction
from trapline.processor.language.registry import Description

_VMX = {
    "vmclear": "66 0F C7 /6",
    "vmlaunch": "0F 01 C2",
    "vmptrld": "0F C7 /6",
    "vmptrst": "0F C7 /7",
    "vmread": "0F 78 /r",
    "vmresume": "0F 01 C3",
    "vmwrite": "0F 79 /r",
    "vmxoff": "0F 01 C4",
    "vmxon": "F3 0F C7 /6",
    "invept": "66 0F 38 80 /r",
    "invvpid": "66 0F 38 81 /r",
}
_SVM = {
    "vmrun": "0F 01 D8",
    "vmload": "0F 01 DA",
    "vmsave": "0F 01 DB",
    "stgi": "0F 01 DC",
    "clgi": "0F 01 DD",
    "skinit": "0F 01 DE",
    "invlpga": "0F 01 DF",
}
_OTHERS = {
    "vmcall": "0F 01 C1",
    "vmmcall": "0F 01 D9",
    "monitor": "0F 01 C8",
    "mwait": "0F 01 C9",
}


def _microcode(function: str) -> Description:
    def describe(cpu: Cpu, *operands: Operand) -> None:
        """See the microcode function."""
        cpu.microcode(function)

    return describe


for _family, _function in ((_VMX, "vmx_instruction"), (_SVM, "svm_instruction"), (_OTHERS, "")):
    for _name, _opcode in _family.items():
        instruction(_opcode, name=_name)(_microcode(_function or _name))
