"""Every instruction form a user program of x86-64-v2 may execute; why each other one is left out.

A form is an iced-x86 code with its register or its memory operand and a LOCK or REP prefix; its
addressing, segments, sizes of displacement and registers are the business of the cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from iced_x86 import (
    Code,
    CpuidFeature,
    DecoderOptions,
    EncodingKind,
    Instruction,
    Mnemonic,
    OpCodeInfo,
    OpCodeOperandKind,
)

_F, _M, _K = CpuidFeature, Mnemonic, OpCodeOperandKind

# x86-64-v2 (x86-64 psABI 1.0, table 3.1), with what every such processor has besides.
FEATURES = frozenset((
    _F.INTEL8086, _F.INTEL186, _F.INTEL286, _F.INTEL386, _F.INTEL486, _F.X64, _F.CMOV, _F.CX8,
    _F.FPU, _F.FPU287, _F.FPU387, _F.FXSR, _F.MMX, _F.SSE, _F.SSE2, _F.SSE3, _F.SSSE3, _F.SSE4_1,
    _F.SSE4_2, _F.CMPXCHG16B, _F.POPCNT, _F.MULTIBYTENOP, _F.PAUSE, _F.CLFSH, _F.PREFETCHW,
    _F.CET_IBT, _F.XSAVE,
    # Known, so that each is left out for its own reason below.
    _F.TSC, _F.CPUID, _F.SYSCALL, _F.SEP, _F.RDTSCP, _F.MSR,
))  # fmt: skip

SYSTEM = "a privileged instruction"
PORTS = "I/O ports"
TRANSFER = "enters or leaves the system, or is a far transfer"
VARIES = "answers differently each time or by the processor's model"
TABLES = "depends on the system's descriptor tables"
OUTSIDE = "outside x86-64-v2"
TWO = "is two instructions, FWAIT and the form without it"
VENDORS = "Intel and AMD decode it differently"
OLD = "decoded only on processors before x86-64"
MODE = "not in this mode"

_TRANSFERS = frozenset((
    _M.INT, _M.INT1, _M.INT3, _M.INTO, _M.IRET, _M.IRETD, _M.IRETQ, _M.SYSCALL, _M.SYSENTER,
    _M.SYSEXIT, _M.SYSEXITQ, _M.SYSRET, _M.SYSRETQ, _M.RETF,
))  # fmt: skip
_VARYING = frozenset((_M.RDTSC, _M.RDTSCP, _M.CPUID, _M.XGETBV))
_TABLES = frozenset((
    _M.LAR, _M.LSL, _M.VERR, _M.VERW, _M.SLDT, _M.STR, _M.SMSW, _M.SGDT, _M.SIDT, _M.LSS, _M.LFS,
    _M.LGS, _M.LDS, _M.LES,
))  # fmt: skip
_REP = frozenset((
    _M.MOVSB, _M.MOVSW, _M.MOVSD, _M.MOVSQ, _M.STOSB, _M.STOSW, _M.STOSD, _M.STOSQ, _M.LODSB,
    _M.LODSW, _M.LODSD, _M.LODSQ,
))  # fmt: skip
_REPE = frozenset((
    _M.CMPSB, _M.CMPSW, _M.CMPSD, _M.CMPSQ, _M.SCASB, _M.SCASW, _M.SCASD, _M.SCASQ,
))  # fmt: skip
MEMORY_KINDS = frozenset((_K.MEM, _K.MEM_OFFS))
EITHER_KINDS = frozenset((
    _K.R8_OR_MEM, _K.R16_OR_MEM, _K.R32_OR_MEM, _K.R64_OR_MEM, _K.MM_OR_MEM, _K.XMM_OR_MEM,
))  # fmt: skip
_MM = frozenset((_K.MM_OR_MEM, _K.MM_REG, _K.MM_RM))
STRING_KINDS = frozenset((_K.SEG_RSI, _K.ES_RDI, _K.SEG_RDI, _K.SEG_RBX_AL))

_MNEMONICS = {
    value: name.lower() for name, value in vars(Mnemonic).items() if isinstance(value, int)
}
NAMES = {value: name for name, value in vars(Code).items() if isinstance(value, int)}


@dataclass(frozen=True)
class Form:
    """A code, where its r/m operand is, and its prefix."""

    code: int
    memory: bool = False
    prefix: str = ""  # "", "lock", "rep" or "repne"
    bits: int = 64

    @property
    def name(self) -> str:
        parts = [self.prefix, NAMES[self.code].lower(), "[m]" if self.memory else ""]
        return " ".join(part for part in parts if part) + (" (32)" if self.bits == 32 else "")

    @property
    def mnemonic(self) -> int:
        return OpCodeInfo(self.code).mnemonic

    @property
    def mnemonic_name(self) -> str:
        return _MNEMONICS[self.mnemonic]

    @property
    def locked(self) -> bool:
        return self.memory and (self.prefix == "lock" or self.mnemonic == Mnemonic.XCHG)


@cache
def features(code: int) -> frozenset[int]:
    instruction = Instruction()
    instruction.code = code
    return frozenset(instruction.cpuid_features())


@cache
def float_units(code: int) -> str:
    """Whose control word matters to a code: "x87" (MMX too), "sse", both or none."""
    has = features(code)
    x87 = has & {_F.FPU, _F.FPU287, _F.FPU387, _F.MMX, _F.FXSR, _F.XSAVE} or _names(code, _MM)
    sse = has & {_F.SSE, _F.SSE2, _F.SSE3, _F.SSSE3, _F.SSE4_1, _F.SSE4_2, _F.FXSR, _F.XSAVE}
    return f"{'x87' if x87 else ''} {'sse' if sse else ''}"


def _names(code: int, kinds: frozenset[int]) -> bool:
    described = OpCodeInfo(code)
    return any(described.op_kind(n) in kinds for n in range(described.op_count))


def why_excluded(code: int, bits: int = 64) -> str | None:
    """The reason why no case executes a code on the host; None for a form that is compared."""
    described = OpCodeInfo(code)
    if not described.is_instruction or described.encoding != EncodingKind.LEGACY:
        return OUTSIDE
    if not features(code) <= FEATURES:
        return OUTSIDE
    if not (described.mode64 if bits == 64 else described.mode32):
        return MODE
    if described.decoder_option != DecoderOptions.NONE:
        return OLD
    if described.mnemonic in _TRANSFERS or _is_far(described):
        return TRANSFER
    if described.is_input_output:
        return PORTS
    if described.mnemonic in _VARYING:
        return VARIES
    if described.mnemonic in _TABLES or _loads_a_segment(described):
        return TABLES
    if described.is_privileged or described.must_be_cpl0 or not described.cpl3:
        return SYSTEM
    if described.fwait:
        return TWO
    if bits == 64 and not (described.intel_decoder64 and described.amd_decoder64):
        return VENDORS
    if described.mnemonic == Mnemonic.RESERVEDNOP and described.op_code == 0x0D:
        return VENDORS
    if bits == 32 and not (described.intel_decoder32 and described.amd_decoder32):
        return VENDORS
    return None


def _is_far(described: OpCodeInfo) -> bool:
    instruction = Instruction()
    instruction.code = described.code
    return bool(
        instruction.is_call_far
        or instruction.is_call_far_indirect
        or instruction.is_jmp_far
        or instruction.is_jmp_far_indirect
    )


def _loads_a_segment(described: OpCodeInfo) -> bool:
    first = described.op_kind(0) if described.op_count else _K.NONE
    if described.mnemonic == Mnemonic.POP:
        return first in (_K.ES, _K.SS, _K.DS, _K.FS, _K.GS)
    return described.mnemonic == Mnemonic.MOV and first == _K.SEG_REG


def forms_of(code: int, bits: int = 64) -> list[Form]:
    """The forms of one code."""
    described = OpCodeInfo(code)
    operands = {described.op_kind(n) for n in range(described.op_count)}
    forms: list[Form] = []
    if not operands & MEMORY_KINDS:
        forms.append(Form(code, bits=bits))
    if operands & (MEMORY_KINDS | EITHER_KINDS):
        forms.append(Form(code, memory=True, bits=bits))
        if described.can_use_lock_prefix:
            forms.append(Form(code, memory=True, prefix="lock", bits=bits))
    if described.mnemonic in _REP | _REPE and operands & STRING_KINDS:
        forms.append(Form(code, prefix="rep", bits=bits))
    if described.mnemonic in _REPE and operands & STRING_KINDS:
        forms.append(Form(code, prefix="repne", bits=bits))
    return forms


@cache
def all_forms(bits: int = 64) -> tuple[Form, ...]:
    """All forms that are compared, in the order of iced-x86's codes."""
    return tuple(
        form for code in NAMES if why_excluded(code, bits) is None for form in forms_of(code, bits)
    )


@cache
def exclusions(bits: int = 64) -> dict[str, tuple[str, ...]]:
    """The codes that are not compared, by reason."""
    found: dict[str, list[str]] = {}
    for code, name in NAMES.items():
        reason = why_excluded(code, bits)
        if reason is not None:
            found.setdefault(reason, []).append(name)
    return {reason: tuple(names) for reason, names in found.items()}
