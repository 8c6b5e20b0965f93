"""What the manuals leave open, and where vendors differ: the only places where answers may differ.

Each entry cites its page.  "SDM 2" is Intel's Software Developer's Manual, volume 2, the section
"Flags Affected" (or "FPU Flags Affected") of the instruction named unless another is given; "APM"
is AMD's Architecture Programmer's Manual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from iced_x86 import Instruction, MemorySizeExt, Mnemonic, OpKind, RegisterExt

from tests.against.safety import effective_linear, value_of
from tests.against.state import AF, CF, OF, PF, SF, STATUS, ZF, Case, Outcome

C0, C1, C2, C3 = 1 << 8, 1 << 9, 1 << 10, 1 << 14  # of the x87 status word
EXCEPTION_SUMMARY = 1 << 7


@dataclass(frozen=True)
class Count:
    """A shift or rotation: its count as masked by the processor, and its operand's width."""

    count: int
    width: int


Condition = Callable[[Count], bool]


@dataclass(frozen=True)
class Flags:
    """Status flags, or x87 condition codes, that instructions leave undefined."""

    names: tuple[str, ...]
    flags: int
    citation: str
    when: Condition | None = None


_SHIFTS = ("SHL", "SAL", "SHR", "SAR")
_DOUBLE = ("SHLD", "SHRD")
_ROTATIONS = ("ROL", "ROR", "RCL", "RCR")

FLAGS: tuple[Flags, ...] = (
    Flags(("AND", "OR", "XOR", "TEST"), AF, "SDM 2, AND, OR, XOR, TEST: AF is undefined"),
    Flags(("MUL",), SF | ZF | AF | PF, "SDM 2, MUL"),
    Flags(
        ("IMUL",), SF | ZF | AF | PF,
        "SDM 2, IMUL: ZF, AF, PF; APM 3, IMUL: SF too, which Intel defines since 2014",
    ),
    Flags(("DIV", "IDIV"), STATUS, "SDM 2, DIV, IDIV"),
    Flags(("BSF", "BSR"), CF | OF | SF | AF | PF, "SDM 2, BSF, BSR"),
    Flags(("BT", "BTS", "BTR", "BTC"), OF | SF | AF | PF, "SDM 2, BT: ZF is unaffected"),
    Flags(_SHIFTS, AF, "SDM 2, SAL/SAR/SHL/SHR: AF", lambda shift: shift.count != 0),
    Flags(_SHIFTS, OF, "SDM 2, SAL/SAR/SHL/SHR: OF but for 1", lambda shift: shift.count > 1),
    Flags(
        ("SHL", "SAL", "SHR"), CF,
        "SDM 2, SAL/SAR/SHL/SHR: CF when the count reaches the width, but for SAR",
        lambda shift: shift.count >= shift.width,
    ),
    Flags(_DOUBLE, AF, "SDM 2, SHLD, SHRD: AF", lambda shift: shift.count != 0),
    Flags(_DOUBLE, OF, "SDM 2, SHLD, SHRD: OF but for 1", lambda shift: shift.count > 1),
    Flags(
        _DOUBLE, STATUS, "SDM 2, SHLD, SHRD: all, when the count exceeds the width",
        lambda shift: shift.count > shift.width,
    ),
    Flags(_ROTATIONS, OF, "SDM 2, RCL/RCR/ROL/ROR: OF but for 1", lambda shift: shift.count > 1),
    Flags(("AAA", "AAS"), OF | SF | ZF | PF, "SDM 2, AAA, AAS"),
    Flags(("AAD", "AAM"), OF | AF | CF, "SDM 2, AAD, AAM"),
    Flags(("DAA", "DAS"), OF, "SDM 2, DAA, DAS"),
)  # fmt: skip

_ARITHMETIC = (
    "F2XM1", "FABS", "FADD", "FADDP", "FBLD", "FBSTP", "FCHS", "FCMOVB", "FCMOVBE", "FCMOVE",
    "FCMOVNB", "FCMOVNBE", "FCMOVNE", "FCMOVNU", "FCMOVU", "FDECSTP", "FDIV", "FDIVP", "FDIVR",
    "FDIVRP", "FIADD", "FIDIV", "FIDIVR", "FILD", "FIMUL", "FINCSTP", "FIST", "FISTP", "FISTTP",
    "FISUB", "FISUBR", "FLD", "FLD1", "FLDL2E", "FLDL2T", "FLDLG2", "FLDLN2", "FLDPI", "FLDZ",
    "FMUL", "FMULP", "FPATAN", "FRNDINT", "FSCALE", "FSQRT", "FST", "FSTP", "FSTPNCE", "FSUB",
    "FSUBP", "FSUBR", "FSUBRP", "FXCH", "FXTRACT", "FYL2X", "FYL2XP1",
)  # fmt: skip

CONDITIONS: tuple[Flags, ...] = (
    Flags(_ARITHMETIC, C0 | C2 | C3, "SDM 2, each: C0, C2, C3 are undefined"),
    Flags(("FSIN", "FCOS", "FSINCOS", "FPTAN"), C0 | C3, "SDM 2, FSIN, FCOS, FSINCOS, FPTAN"),
    Flags(
        (
            "FFREE", "FFREEP", "FLDCW", "FNCLEX", "FNSTCW", "FNSTENV", "FNSTSW", "FNOP", "WAIT",
            "FNENI", "FNDISI", "FNSETPM",
        ),
        C0 | C1 | C2 | C3, "SDM 2, each: C0 to C3 are undefined",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Divergence:
    """A form whose answer differs between vendors or models; what is done about it here."""

    names: tuple[str, ...]
    what: str
    citation: str


DIVERGENCES: tuple[Divergence, ...] = (
    Divergence(
        ("BSF", "BSR"), "the destination when the source is zero: not compared",
        "SDM 2, BSF: undefined; APM 3, BSF: unchanged",
    ),
    Divergence(
        ("BSWAP",), "the result with a 16-bit operand: not compared",
        "SDM 2, BSWAP: undefined; APM 3, BSWAP: undefined",
    ),
    Divergence(
        _DOUBLE, "the result when the count exceeds a 16-bit operand's width: not compared",
        "SDM 2, SHLD; APM 3, SHLD: undefined",
    ),
    Divergence(
        ("RCPPS", "RCPSS", "RSQRTPS", "RSQRTSS"),
        "the approximation: compared within its bound, a relative error of 1.5 * 2^-12",
        "SDM 2, RCPPS: the table is not given; APM 4, RCPPS: the same bound",
    ),
    Divergence(
        ("FSIN", "FCOS", "FSINCOS", "FPTAN", "FPATAN", "F2XM1", "FYL2X", "FYL2XP1"),
        "the last bits of transcendental results, and C1: compared within 2 ulp",
        'SDM 1, "Approximation of Pi" and "Transcendental Instruction Accuracy": within 1 ulp',
    ),
    Divergence(
        ("x87", "FXSAVE", "FXSAVE64", "XSAVE", "XSAVE64", "FNSTENV", "FNSAVE"),
        "FOP, FIP and FDP: compared only while an unmasked exception is pending (FSW.ES)",
        'APM 2, "FXSAVE and FXRSTOR Instructions": otherwise not saved; SDM 1, "x87 FPU'
        ' Instruction and Data (Operand) Pointers": always, and FOP by model',
    ),
    Divergence(
        ("FXSAVE", "FXSAVE64", "XSAVE", "XSAVE64", "FXRSTOR", "FXRSTOR64", "XRSTOR", "XRSTOR64"),
        "MXCSR_MASK, and MXCSR bit 17 (misaligned SSE on AMD): not compared, never set",
        "APM 2, \"MXCSR Register\", MM; SDM 1, \"Checking for the ... MXCSR_MASK\"",
    ),
    Divergence(
        ("XSAVE", "XSAVE64"), "XSTATE_BV, for which states count as initial: not compared",
        'SDM 1, "Processor Tracking of XSAVE-Managed State": XINUSE is by implementation',
    ),
    Divergence(
        ("Jcc", "LOOPcc", "JRCXZ", "JMP", "CALL", "RET"),
        "a 66 prefix in 64-bit mode: Intel ignores it, AMD cuts RIP to 16 bits: left out",
        "SDM 2, Jcc, \"64-bit mode\"; APM 3, \"Near Branches in 64-Bit Mode\"",
    ),
    Divergence(
        ("RESERVEDNOP",), "0F 0D with a register operand: NOP on Intel, #UD on AMD: left out",
        "SDM 2, opcode map, group P; APM 3, PREFETCH: #UD with a register operand",
    ),
    Divergence(
        ("MOVSXD",), "with a 16-bit operand in memory, whether two bytes are read or four: the"
        " four can always be read",
        "SDM 2, MOVSXD: r/m16; APM 3, MOVSXD: reg/mem32 only",
    ),
    Divergence(
        ("FXSAVE", "FXSAVE64", "FXRSTOR", "FXRSTOR64", "XSAVE", "XSAVE64", "XRSTOR", "XRSTOR64"),
        "a misaligned operand with #AC enabled, or beyond the stack segment: no such cases",
        "SDM 2, FXSAVE, #AC: not guaranteed, may vary with implementation; SDM 3A, \"Priority"
        " Among Concurrent Events\": no order among the faults of one access; APM 2, the same",
    ),
    Divergence(
        ("CALL",), "whether the push or a non-canonical target faults first: never both",
        "SDM 2, CALL: the target; APM 3, CALL: the push (measured: the push)",
    ),
    Divergence(
        ("ENTER",), "whether the new stack pointer is probed for alignment: never with RFLAGS.AC",
        "SDM 2, ENTER: a write using the final ESP would fault; APM 3, ENTER: no word of #AC",
    ),
    Divergence(
        ("POPA", "POPAD", "PUSHA", "PUSHAD"),
        "what has been done when a fault comes midway: no such cases",
        "SDM 2, POPA: restarts, as ESP is unchanged; APM 3, POPA: the same",
    ),
    Divergence(
        ("MASKMOVQ",), "whether #AC comes before the change to the MMX state: no such cases",
        "SDM 2, MASKMOVQ: traps with partial masks are by implementation; APM 5, MASKMOVQ",
    ),
    Divergence(
        ("UD0", "UD1"), "whether all bytes are fetched before #UD: never cut off by a page's end",
        "SDM 2, UD: they have a ModRM byte, and the order of the faults is not stated; APM 3, UD1",
    ),
    Divergence(
        ("UD0",), "whether 0F FF has a ModRM byte: left out",
        "SDM 2, UD: it does; APM 3, UD0: it does not",
    ),
    Divergence(
        ("MASKMOVQ", "MASKMOVDQU"), "faults for bytes that are masked off: no such cases",
        "SDM 2, MASKMOVDQU: exceptions with a mask of zeros are by implementation",
    ),
)  # fmt: skip


@dataclass
class Mask:
    """What a comparison leaves out for one case."""

    flags: int = 0
    fsw: int = 0
    registers: dict[int, int] = field(default_factory=dict)  # number: bits
    memory: set[int] = field(default_factory=set)  # linear addresses of bytes
    pointers: bool = False  # whether FOP, FIP and FDP are compared
    approximate_vectors: bool = False
    approximate_stack: bool = False


def _by_name(entries: Iterable[Flags]) -> dict[int, list[Flags]]:
    table: dict[int, list[Flags]] = {}
    for entry in entries:
        for name in entry.names:
            table.setdefault(getattr(Mnemonic, name), []).append(entry)
    return table


_FLAGS, _CONDITIONS = _by_name(FLAGS), _by_name(CONDITIONS)
APPROXIMATE = frozenset((Mnemonic.RCPPS, Mnemonic.RCPSS, Mnemonic.RSQRTPS, Mnemonic.RSQRTSS))
TRANSCENDENTAL = frozenset((
    Mnemonic.FSIN, Mnemonic.FCOS, Mnemonic.FSINCOS, Mnemonic.FPTAN, Mnemonic.FPATAN,
    Mnemonic.F2XM1, Mnemonic.FYL2X, Mnemonic.FYL2XP1,
))  # fmt: skip
_IMAGES = frozenset((Mnemonic.FXSAVE, Mnemonic.FXSAVE64, Mnemonic.XSAVE, Mnemonic.XSAVE64))
_ENVIRONMENTS = frozenset((Mnemonic.FNSTENV, Mnemonic.FNSAVE))
_SHORT_ENVIRONMENTS = frozenset((14, 94))
_COUNTED = frozenset(getattr(Mnemonic, name) for name in (*_SHIFTS, *_DOUBLE, *_ROTATIONS))
_DOUBLES = frozenset((Mnemonic.SHLD, Mnemonic.SHRD))


def mask(case: Case, instruction: Instruction, expected: Outcome) -> Mask:
    """What must not be compared for a case; a fault leaves nothing undefined."""
    made = Mask(pointers=expected.fx[2] & EXCEPTION_SUMMARY != 0)
    if expected.fault is not None:
        return made
    mnemonic = instruction.mnemonic
    shift = shift_count(case, instruction)
    for entry in _FLAGS.get(mnemonic, ()):
        if entry.when is None or (shift is not None and entry.when(shift)):
            made.flags |= entry.flags
    for entry in _CONDITIONS.get(mnemonic, ()):
        made.fsw |= entry.flags
    made.approximate_vectors = mnemonic in APPROXIMATE
    if mnemonic in TRANSCENDENTAL:
        made.approximate_stack = True
        made.fsw |= C1
    if mnemonic in _IMAGES or mnemonic in _ENVIRONMENTS:
        _mask_image(made, case, instruction)
    if _destination_is_undefined(instruction, expected, shift):
        _mask_destination(made, case, instruction)
    return made


def shift_count(case: Case, instruction: Instruction) -> Count | None:
    """The count of a shift or rotation, masked to 5 or 6 bits (SDM 2, SAL/SAR/SHL/SHR)."""
    if instruction.mnemonic not in _COUNTED:
        return None
    last = instruction.op_count - 1
    width = 8 * _operand_size(instruction, 0)
    if instruction.op_kind(last) == OpKind.REGISTER:
        count = value_of(case, instruction.op_register(last))
    else:
        count = instruction.immediate(last)
    return Count(count & (63 if width == 64 else 31), width)


def _operand_size(instruction: Instruction, number: int) -> int:
    if instruction.op_kind(number) == OpKind.REGISTER:
        return RegisterExt.size(instruction.op_register(number))
    return MemorySizeExt.size(instruction.memory_size)


def _destination_is_undefined(
    instruction: Instruction, expected: Outcome, shift: Count | None
) -> bool:
    mnemonic = instruction.mnemonic
    if mnemonic in (Mnemonic.BSF, Mnemonic.BSR):
        return expected.flags & ZF != 0
    if mnemonic == Mnemonic.BSWAP:
        return RegisterExt.size(instruction.op_register(0)) == 2
    return shift is not None and mnemonic in _DOUBLES and shift.count > shift.width


def _number(register: int) -> int:
    return RegisterExt.number(RegisterExt.full_register(register))


def _mask_destination(made: Mask, case: Case, instruction: Instruction) -> None:
    size = _operand_size(instruction, 0)
    if instruction.op_kind(0) == OpKind.REGISTER:
        # All 64 bits of a 32-bit one: whether "unchanged" clears the upper half is as open.
        width = 8 * size if size < 4 else 64
        made.registers[_number(instruction.op_register(0))] = (1 << width) - 1
    else:
        linear = effective_linear(case, instruction)
        made.memory |= set(range(linear, linear + size))


def _mask_image(made: Mask, case: Case, instruction: Instruction) -> None:
    """The fields of a stored image that differ between vendors."""
    linear = effective_linear(case, instruction)
    pending = case.fx[2] & EXCEPTION_SUMMARY
    fields: list[tuple[int, int]] = []
    if instruction.mnemonic in _IMAGES:
        fields.append((28, 32))
        fields += [] if pending else [(6, 24)]
        if instruction.mnemonic in (Mnemonic.XSAVE, Mnemonic.XSAVE64):
            fields.append((512, 520))
    elif not pending:
        short = MemorySizeExt.size(instruction.memory_size) in _SHORT_ENVIRONMENTS
        fields.append((6, 14) if short else (12, 28))
    for start, end in fields:
        made.memory |= set(range(linear + start, linear + end))
