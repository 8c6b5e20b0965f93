"""The culprit's memory operand: the expression, the register values, and the address they give.

Works on the disassembler's text (Intel syntax), so it needs no decoder of its own.  Registers
are read after the instruction; one it changed is found again from the known linear address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from trapline.trace.region import Locked

Disassemble = Callable[[bytes, int, int], str]  # (code, rip, bitness) -> text

SIZES = {1: "byte ptr ", 2: "word ptr ", 4: "dword ptr ", 8: "qword ptr ", 16: "xmmword ptr "}
MASK = 0xFFFF_FFFF_FFFF_FFFF
_MEMORY = re.compile(r"((?:[a-z]+ ptr )?)((?:[c-gs]s:)?)\[([^\]]+)\]", re.IGNORECASE)
_BIT_TEST = re.compile(r"\bbt[src]?\b.*,\s*([a-z0-9]+)$", re.IGNORECASE)
_TERM = re.compile(r"([+-]?)\s*([^+\-\s][^+\-]*)")
_REGISTER = re.compile(r"(r[0-9]+d?|[re][a-ds][xip])", re.IGNORECASE)
_WIDE = {"eax": "rax", "ebx": "rbx", "ecx": "rcx", "edx": "rdx", "esi": "rsi", "edi": "rdi",
         "ebp": "rbp", "esp": "rsp", "eip": "rip"}  # fmt: skip
_PARTS = {"al": "rax", "ah": "rax", "ax": "rax", "bl": "rbx", "bh": "rbx", "bx": "rbx",
          "cl": "rcx", "ch": "rcx", "cx": "rcx", "dl": "rdx", "dh": "rdx", "dx": "rdx",
          "si": "rsi", "di": "rdi", "bp": "rbp", "sp": "rsp", "sil": "rsi", "dil": "rdi",
          "bpl": "rbp", "spl": "rsp"}  # fmt: skip


class Term(NamedTuple):
    """One summand: `factor` times a register, or a plain number."""

    factor: int
    register: str | None
    number: int = 0


class Operand(NamedTuple):
    """The memory operand as text, with the registers it is made of."""

    text: str
    registers: dict[str, int]

    def __str__(self) -> str:
        shown = " ".join(f"{name}={number:#x}" for name, number in self.registers.items())
        return f"{self.text}  {shown}" if shown else self.text


def find_operand(text: str, registers: Mapping[str, int], lock: Locked) -> Operand | None:
    """The memory operand of an instruction, with the register values that led to its address."""
    match = _MEMORY.search(text)
    if match is None:
        return None
    kind, segment, inside = match.groups()
    terms = parse_terms(inside)
    beside = text[: match.start()] + text[match.end() :]
    distance = _bit_distance(beside, registers)
    wanted = (lock.linear - _segment_base(segment, registers) - distance) & MASK
    found = {
        term.register: lock.next_rip if _wide(term.register) == "rip" else _value(term, registers)
        for term in terms
        if term.register is not None and (_wide(term.register) in registers)
    }
    if sum(_contribution(term, found) for term in terms) & MASK != wanted:
        _recover(terms, found, wanted, beside)
    expression = f"{kind or SIZES.get(lock.size, '')}{segment}[{inside}]"
    if segment[:2] in ("fs", "gs"):
        found[f"{segment[:2]}_base"] = _segment_base(segment, registers)
    bit = _bit_register(beside)
    if bit is not None and bit.full in registers:
        found[bit.name] = registers[bit.full] & ((1 << bit.width) - 1)
    return Operand(expression, {name: found[name] for name in found})


def evaluate(text: str, registers: Mapping[str, int], next_rip: int) -> int | None:
    """The linear address of the memory operand with these registers, or None if it has none."""
    match = _MEMORY.search(text)
    if match is None:
        return None
    _, segment, inside = match.groups()
    known = {**registers, "rip": next_rip}
    total = _segment_base(segment, registers)
    total += _bit_distance(text[: match.start()] + text[match.end() :], registers)
    for term in parse_terms(inside):
        if term.register is None:
            total += term.number
        elif _wide(term.register) in known:
            total += term.factor * _value(term, known)
        else:
            return None
    return total & MASK


def parse_terms(inside: str) -> list[Term]:
    """The summands of `rdi+rax*8-10h`, in the ways disassemblers write numbers."""
    terms = []
    for sign, body in _TERM.findall(inside):
        factor = -1 if sign == "-" else 1
        parts = [part.strip().lower() for part in body.strip().removeprefix("rel ").split("*")]
        names = [part for part in parts if _is_register(part)]
        for part in parts:
            if part not in names:
                factor *= _number(part)
        terms.append(Term(factor, names[0]) if names else Term(1, None, factor))
    return terms


def _is_register(part: str) -> bool:
    return _REGISTER.fullmatch(part) is not None


def _number(part: str) -> int:
    if part.endswith("h"):
        return int(part[:-1], 16)
    return int(part, 0)


def _wide(register: str) -> str:
    """The 64-bit register an address register is part of."""
    if register in _WIDE:
        return _WIDE[register]
    return register[:-1] if register[0] == "r" and register.endswith("d") else register


def _value(term: Term, registers: Mapping[str, int]) -> int:
    assert term.register is not None
    wide = _wide(term.register)
    return registers[wide] & (MASK if wide == term.register else 0xFFFF_FFFF)


def _contribution(term: Term, found: Mapping[str, int]) -> int:
    if term.register is None:
        return term.number
    return term.factor * found.get(term.register, 0)


def _segment_base(segment: str, registers: Mapping[str, int]) -> int:
    return registers.get(f"{segment[:2].lower()}_base", 0) if segment else 0


class _BitRegister(NamedTuple):
    """The register of BT, BTS, BTR or BTC that says which bit of memory."""

    name: str
    full: str
    width: int


def _bit_register(beside: str) -> _BitRegister | None:
    match = _BIT_TEST.search(beside)
    if match is None:
        return None
    name = match.group(1).lower()
    width = 16 if name in _PARTS or name.endswith("w") else 64 if name == _full(name) else 32
    return _BitRegister(name, _full(name), width)


def _bit_distance(beside: str, registers: Mapping[str, int]) -> int:
    """How far from the operand's address the bit's word is, in bytes (SDM 2A, "BT": the offset
    in a register is signed, and reaches memory around the operand)."""
    bit = _bit_register(beside)
    if bit is None or bit.full not in registers:
        return 0
    number = registers[bit.full] & ((1 << bit.width) - 1)
    signed = number - (number >> (bit.width - 1) << bit.width)
    return (signed >> (bit.width.bit_length() - 1)) * (bit.width // 8)


def _recover(terms: list[Term], found: dict[str, int], wanted: int, others: str) -> None:
    """Put back the one address register that the instruction itself has overwritten."""
    changed = {_full(name) for name in re.findall(r"[a-z0-9]+", others.lower())}
    if "cmpxchg" in others:
        changed |= {"rax", "rdx"}
    suspects = [t for t in terms if t.register is not None and _wide(t.register) in changed]
    if len({term.register for term in suspects}) != 1:
        return
    name = suspects[0].register
    assert name is not None
    factor = sum(term.factor for term in suspects)
    rest = sum(_contribution(term, found) for term in terms if term.register != name)
    before = (wanted - rest) & MASK
    if factor and before % factor == 0:
        found[name] = before // factor


def _full(name: str) -> str:
    """rax for eax, ax, al; r8 for r8d, r8w, r8b."""
    if name in _PARTS:
        return _PARTS[name]
    if re.fullmatch(r"r[0-9]+[dwbl]", name):
        return name[:-1]
    return _wide(name) if _is_register(name) else name
