"""The whole visible state after an instruction, compared slot by slot; a reproducer to print."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from iced_x86 import Decoder, Formatter, FormatterSyntax, Instruction

from tests.against.layout import background, offset_of
from tests.against.state import (
    FLAG_NAMES,
    FLAGS,
    REGISTERS,
    STATUS,
    Case,
    FloatState,
    Outcome,
)
from tests.against.undefined import Mask, mask

ULPS = 2
RELATIVE_ERROR = 1.5 * 2**-12


@dataclass(frozen=True)
class Difference:
    """One slot of the state in which two outcomes differ."""

    slot: str
    expected: str
    got: str


def decode(case: Case) -> Instruction:
    return Decoder(case.bits, case.code, ip=case.entry).decode()


def differences(case: Case, expected: Outcome, got: Outcome) -> list[Difference]:
    """Where an outcome departs from the host's, what is undefined left out."""
    if expected == got:
        return []
    left_out = mask(case, decode(case), expected)
    return [
        *_plain(case, expected, got, left_out),
        *_floating(expected, got, left_out),
        *_memory(expected, got, left_out),
    ]


def _plain(case: Case, expected: Outcome, got: Outcome, left_out: Mask) -> Iterator[Difference]:
    if expected.fault != got.fault:
        yield Difference("exception", str(expected.fault), str(got.fault))
    if expected.hung != got.hung:
        yield Difference("hung", str(expected.hung), str(got.hung))
    if expected.rip != got.rip:
        yield Difference("rip", hex(expected.rip), hex(got.rip))
    whole = (1 << case.bits) - 1
    for number in range(16 if case.bits == 64 else 8):
        compared = whole & ~left_out.registers.get(number, 0)
        if (expected.registers[number] ^ got.registers[number]) & compared:
            yield Difference(
                REGISTERS[number], hex(expected.registers[number]), hex(got.registers[number])
            )
    compared = FLAGS & ~left_out.flags
    for flag, name in FLAG_NAMES.items():
        if (expected.flags ^ got.flags) & compared & flag:
            yield Difference(
                name, str(int(expected.flags & flag > 0)), str(int(got.flags & flag > 0))
            )


def _floating(expected: Outcome, got: Outcome, left_out: Mask) -> Iterator[Difference]:
    if expected.fx == got.fx:
        return
    ours, theirs = FloatState.unpack(got.fx), FloatState.unpack(expected.fx)
    if (ours.fsw ^ theirs.fsw) & ~left_out.fsw:
        yield Difference("fsw", hex(theirs.fsw), hex(ours.fsw))
    names = ["fcw", "ftw", "mxcsr"]
    if left_out.pointers:
        names += ["fop", "fip", "fdp"]
    for name in names:
        if getattr(ours, name) != getattr(theirs, name):
            yield Difference(name, hex(getattr(theirs, name)), hex(getattr(ours, name)))
    for number in range(8):
        wanted, found = theirs.st[number], ours.st[number]
        if wanted != found and not (left_out.approximate_stack and _within_ulps(wanted, found)):
            yield Difference(f"st{number}", _number(wanted), _number(found))
    for number in range(16):
        wanted, found = theirs.xmm[number], ours.xmm[number]
        if wanted != found and not (left_out.approximate_vectors and _within_bound(wanted, found)):
            yield Difference(f"xmm{number}", _number(wanted), _number(found))


def _number(content: bytes) -> str:
    return f"{int.from_bytes(content, 'little'):#x}"


def _within_ulps(wanted: bytes, found: bytes) -> bool:
    """Neighbouring 80-bit numbers: sign and exponent above the significand, as one integer."""
    left, right = int.from_bytes(wanted, "little"), int.from_bytes(found, "little")
    if (left >> 64 & 0x7FFF) == 0x7FFF or (right >> 64 & 0x7FFF) == 0x7FFF:
        return False
    return abs(_ordered(left) - _ordered(right)) <= ULPS


def _ordered(value: int) -> int:
    magnitude = (value >> 64 & 0x7FFF) << 63 | value & (1 << 63) - 1
    return -magnitude if value >> 79 else magnitude


def _within_bound(wanted: bytes, found: bytes) -> bool:
    """Finite elements within the approximation's bound; anything else equal."""
    for start in range(0, 16, 4):
        left, right = wanted[start : start + 4], found[start : start + 4]
        if left == right:
            continue
        (a,), (b,) = struct.unpack("<f", left), struct.unpack("<f", right)
        # Both may be off by the bound.  NaN and infinity make the comparison false.
        if not abs(a - b) <= 2 * RELATIVE_ERROR * abs(a) < float("inf"):
            return False
    return True


def _memory(expected: Outcome, got: Outcome, left_out: Mask) -> Iterator[Difference]:
    if expected.memory == got.memory:
        return
    for linear in sorted(expected.memory.keys() | got.memory.keys()):
        wanted = expected.memory.get(linear) or _background(linear)
        found = got.memory.get(linear) or _background(linear)
        differing = [
            n for n in range(8) if wanted[n] != found[n] and linear + n not in left_out.memory
        ]
        if differing:
            yield Difference(f"[{linear:#x}]", wanted.hex(" "), found.hex(" "))


def _background(linear: int) -> bytes:
    start = offset_of(linear)
    if start is None:
        return b""
    return background()[start : start + 8]


def undefined_flags(case: Case, expected: Outcome) -> int:
    """The status flags that say nothing after a case."""
    return mask(case, decode(case), expected).flags & STATUS


def reproducer(case: Case, found: list[Difference], engine: str) -> str:
    """All one needs to run the case again: bytes, text, state, and the slots that differ."""
    names = {name: value for name, value in zip(REGISTERS, case.registers, strict=True) if value}
    state = FloatState.unpack(case.fx)
    lines = [
        f"{case.form}: {text(case)}   ({case.code.hex(' ')} at {case.entry:#x}, {case.bits}-bit)",
        "  " + " ".join(f"{name}={value:#x}" for name, value in names.items()),
        f"  flags={case.flags:#x} ({_flag_names(case.flags)}) mxcsr={state.mxcsr:#x}"
        f" fcw={state.fcw:#x} fsw={state.fsw:#x} ftw={state.ftw:#x}",
    ]
    lines += [f"  memory {linear:#x}: {content.hex()}" for linear, content in case.memory]
    if any(name.slot.startswith(("st", "fsw", "xmm", "mxcsr", "[")) for name in found):
        lines += [f"  st{n}={_number(value)}" for n, value in enumerate(state.st)]
        lines += [f"  xmm{n}={_number(value)}" for n, value in enumerate(state.xmm)]
    lines += [f"  {one.slot}: host {one.expected}, {engine} {one.got}" for one in found]
    return "\n".join(lines)


def text(case: Case) -> str:
    return Formatter(FormatterSyntax.INTEL).format(decode(case))


def text_of_program(case: Case) -> str:
    """All instructions of a case of many, one a line, and where it starts from."""
    formatter = Formatter(FormatterSyntax.INTEL)
    lines = [f"{case.form}, {case.bits}-bit, flags={case.flags:#x}"]
    for instruction in Decoder(case.bits, case.code, ip=case.entry):
        lines.append(f"  {instruction.ip:#x}  {formatter.format(instruction)}")
    names = zip(REGISTERS, case.registers, strict=True)
    lines.append("  " + " ".join(f"{name}={value:#x}" for name, value in names))
    lines += [f"  memory {linear:#x}: {content.hex()}" for linear, content in case.memory]
    return "\n".join(lines)


def _flag_names(flags: int) -> str:
    return " ".join(name for flag, name in FLAG_NAMES.items() if flags & flag)
