"""System instructions.  Each is microcode of its own name, for it reads and changes what the
language has no words for; privilege and mode are checked there.

Far transfers through gates, interrupts and ports have files of their own.
"""

from __future__ import annotations

from trapline.processor.language import UD, Cpu, Operand, const, instruction
from trapline.processor.language.registry import Description

# Mnemonic -> opcodes and, where it is not the mnemonic's, the microcode's name.
_SYSTEM: dict[str, tuple[tuple[str, ...], str]] = {
    # Entering and leaving the system.
    "syscall": (("0F 05",), ""),
    "sysret": (("0F 07",), ""),
    "sysretq": (("REX.W 0F 07",), "sysret"),
    "sysenter": (("0F 34",), ""),
    "sysexit": (("0F 35",), ""),
    "sysexitq": (("REX.W 0F 35",), "sysexit"),
    "swapgs": (("0F 01 F8",), ""),
    "rdfsbase": (("F3 0F AE /0",), ""),
    "rdgsbase": (("F3 0F AE /1",), ""),
    "wrfsbase": (("F3 0F AE /2",), ""),
    "wrgsbase": (("F3 0F AE /3",), ""),
    # Control registers (MOV CR and MOV DR are forms of MOV).
    "lmsw": (("0F 01 /6",), ""),
    "smsw": (("0F 01 /4",), ""),
    "clts": (("0F 06",), ""),
    "xgetbv": (("0F 01 D0",), ""),
    "xsetbv": (("0F 01 D1",), ""),
    # What the processor tells of itself.
    "cpuid": (("0F A2",), ""),
    "rdmsr": (("0F 32",), ""),
    "wrmsr": (("0F 30",), ""),
    "rdtsc": (("0F 31",), ""),
    "rdtscp": (("0F 01 F9",), ""),
    "rdpmc": (("0F 33",), ""),
    "rdpid": (("F3 0F C7 /7",), ""),
    # Descriptor tables.
    "sgdt": (("0F 01 /0",), ""),
    "sidt": (("0F 01 /1",), ""),
    "lgdt": (("0F 01 /2",), ""),
    "lidt": (("0F 01 /3",), ""),
    "sldt": (("0F 00 /0",), ""),
    "str": (("0F 00 /1",), ""),
    "lldt": (("0F 00 /2",), ""),
    "ltr": (("0F 00 /3",), ""),
    "verr": (("0F 00 /4",), ""),
    "verw": (("0F 00 /5",), ""),
    "lar": (("0F 02 /r",), ""),
    "lsl": (("0F 03 /r",), ""),
    "arpl": (("63 /r",), ""),
    # Flags, halting, translations, caches, keys.
    "cli": (("FA",), ""),
    "sti": (("FB",), ""),
    "stac": (("0F 01 CB",), ""),
    "clac": (("0F 01 CA",), ""),
    "hlt": (("F4",), ""),
    "invlpg": (("0F 01 /7",), ""),
    "invpcid": (("66 0F 38 82 /r",), ""),
    "invd": (("0F 08",), ""),
    "wbinvd": (("0F 09",), ""),
    "rdpkru": (("0F 01 EE",), ""),
    "wrpkru": (("0F 01 EF",), ""),
}


def _system(function: str) -> Description:
    def describe(cpu: Cpu, *operands: Operand) -> None:
        """See the microcode function."""
        cpu.microcode(function)

    return describe


for _name, (_opcodes, _function) in _SYSTEM.items():
    instruction(*_opcodes, name=_name)(_system(_function or _name))


@instruction("0F AA")
def rsm(cpu: Cpu) -> None:
    """#UD: there is no system-management mode to resume from."""
    cpu.fault(const(1, 1), UD)
