"""Call stacks of a stopped thread: call frame information first, frame pointers as fallback.

Asks for registers, memory and the image at an address; knows nothing of the guest behind them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from trapline.trace.cfi import CallFrames, Reader, Row, Rule

# The x86-64 ABI's DWARF register numbers 0-16; 16 is the return address.
REGISTERS = (
    "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip",
)  # fmt: skip
RBP, RSP, RIP = 6, 7, 16
PRESERVED = (3, 6, 12, 13, 14, 15)  # what a call keeps: rbx, rbp, r12-r15
MASK = 0xFFFF_FFFF_FFFF_FFFF
PAGE = 4096
RESTORER = bytes.fromhex("48c7c00f0000000f05")  # mov rax, SYS_rt_sigreturn; syscall
# Where a signal frame's ucontext keeps r8..r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
UCONTEXT = (8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7, 16)
UCONTEXT_OFFSET = 40

ReadMemory = Callable[[int, int], bytes]


class Frame(NamedTuple):
    """One frame: where it executes (or will return to), and how its caller was found."""

    rip: int
    how: str  # "cfi" | "frame pointer" | "leaf" | "signal" | "end"
    is_return_address: bool
    # What locals are counted from; the CFA is the caller's stack pointer.
    cfa: int | None = None
    rsp: int | None = None
    rbp: int | None = None

    @property
    def lookup(self) -> int:
        """The address to look up: a return address belongs to the call before it."""
        return self.rip - 1 if self.is_return_address else self.rip


class Code(NamedTuple):
    """The image an address lies in: its call frame information and its load bias."""

    frames: CallFrames | None
    bias: int


class FindCode(Protocol):
    """Which code an address belongs to; None where the address is not executable."""

    def __call__(self, linear: int, /) -> Code | None: ...


def unwind(
    registers: Mapping[str, int], read: ReadMemory, find_code: FindCode, limit: int = 64
) -> list[Frame]:
    """The call stack, innermost first, of a thread with these registers."""
    thread = _Thread(read, find_code)
    known = {n: registers[name] for n, name in enumerate(REGISTERS) if name in registers}
    frames: list[Frame] = []
    is_return_address = False
    while RIP in known and len(frames) < limit:
        frame = Frame(known[RIP], "end", is_return_address)
        code = find_code(frame.lookup) or find_code(frame.rip)
        if code is None and frames:
            break
        caller, how, is_signal = thread.caller(known, frame.lookup, code, not frames)
        cfa = caller.get(RSP) if caller is not None and not is_signal else None
        frames.append(frame._replace(how=how, cfa=cfa, rsp=known.get(RSP), rbp=known.get(RBP)))
        if caller is None or not _is_progress(known, caller, is_signal):
            break
        known, is_return_address = caller, not is_signal
    return frames


def _is_progress(inner: dict[int, int], outer: dict[int, int], is_signal: bool) -> bool:
    if outer.get(RIP, 0) == 0:
        return False
    return is_signal or outer.get(RSP, 0) > inner.get(RSP, 0)


class _Thread:
    """The memory of the thread, read a page at a time."""

    def __init__(self, read: ReadMemory, find_code: FindCode) -> None:
        self._read, self._find_code = read, find_code
        self._pages: dict[int, bytes] = {}

    def peek(self, linear: int, size: int) -> bytes:
        page, inside = linear & -PAGE, linear % PAGE
        if page not in self._pages:
            self._pages[page] = self._read(page, PAGE)
        found = self._pages[page][inside : inside + size]
        if len(found) < size and inside + size > PAGE and len(self._pages[page]) == PAGE:
            found += self.peek(page + PAGE, size - len(found))
        return found

    def word(self, linear: int) -> int:
        found = self.peek(linear & MASK, 8)
        if len(found) < 8:
            raise LookupError(f"no memory at {linear:#x}")
        return int.from_bytes(found, "little")

    def caller(
        self, known: dict[int, int], lookup: int, code: Code | None, is_innermost: bool
    ) -> tuple[dict[int, int] | None, str, bool]:
        """(registers of the caller or None, how they were found, was this a signal frame)."""
        try:
            row = code.frames.row(lookup - code.bias) if code and code.frames else None
            if row is not None and row.is_signal_frame:
                return self._by_cfi(known, row), "cfi", True
            if self.peek(known[RIP], len(RESTORER)) == RESTORER and RSP in known:
                return self._by_ucontext(known), "signal", True
            if row is not None:
                return self._by_cfi(known, row), "cfi", False
            caller = self._by_frame_pointer(known)
            if caller is not None:
                return caller, "frame pointer", False
            return (self._as_leaf(known) if is_innermost else None), "leaf", False
        except (LookupError, struct.error):  # unreadable stack or damaged tables
            return None, "end", False

    def _by_cfi(self, known: dict[int, int], row: Row) -> dict[int, int] | None:
        if row.cfa is None:
            return None
        if row.cfa.kind == "cfa":
            cfa = (known[row.cfa.register] + row.cfa.number) & MASK
        else:
            cfa = self._expression(row.cfa.expression, known, None)
        caller = {number: known[number] for number in PRESERVED if number in known}
        caller[RSP] = cfa
        for number, rule in row.registers.items():
            found = self._register(rule, known, cfa, number)
            if found is None:
                caller.pop(number, None)
            else:
                caller[number] = found
        if row.return_column != RIP and row.return_column in caller:
            caller[RIP] = caller.pop(row.return_column)
        return caller if RIP in caller else None

    def _register(self, rule: Rule, known: dict[int, int], cfa: int, number: int) -> int | None:
        match rule.kind:
            case "offset":
                return self.word(cfa + rule.number)
            case "val_offset":
                return (cfa + rule.number) & MASK
            case "expression":
                return self.word(self._expression(rule.expression, known, cfa))
            case "val_expression":
                return self._expression(rule.expression, known, cfa)
            case "register":
                return known.get(rule.register)
            case "same":
                return known.get(number)
        return None

    def _by_ucontext(self, known: dict[int, int]) -> dict[int, int]:
        base = known[RSP] + UCONTEXT_OFFSET
        return {number: self.word(base + 8 * at) for at, number in enumerate(UCONTEXT)}

    def _by_frame_pointer(self, known: dict[int, int]) -> dict[int, int] | None:
        """Trust rbp only if it points up the stack and at a return address into code."""
        rbp, rsp = known.get(RBP, 0), known.get(RSP, 0)
        if not rsp <= rbp < rsp + (1 << 23) or rbp % 8:
            return None
        saved, back = self.word(rbp), self.word(rbp + 8)
        if not self._is_after_call(back):
            return None
        return {RBP: saved, RSP: rbp + 16, RIP: back}

    def _as_leaf(self, known: dict[int, int]) -> dict[int, int] | None:
        """Assembly code that has pushed nothing: the return address is on top of the stack."""
        back = self.word(known[RSP])
        if not self._is_after_call(back):
            return None
        kept = {number: known[number] for number in PRESERVED if number in known}
        return {**kept, RSP: known[RSP] + 8, RIP: back}

    def _is_after_call(self, back: int) -> bool:
        """Whether an address is code, right after a CALL (E8 rel32 or FF /2)."""
        if self._find_code(back - 1) is None:
            return False
        code = self.peek(back - 7, 7)
        if len(code) < 7 or code[2] == 0xE8:
            return len(code) == 7
        return any(code[at] == 0xFF and code[at + 1] >> 3 & 7 == 2 for at in range(6))

    def _expression(self, code: bytes, known: dict[int, int], cfa: int | None) -> int:
        """A DWARF expression, as far as call frame information uses them."""
        stack: list[int] = [] if cfa is None else [cfa]
        reader = Reader(code)
        while reader.at < len(code):
            self._step(reader, stack, known)
        return stack[-1] & MASK

    def _step(self, reader: Reader, stack: list[int], known: dict[int, int]) -> None:
        opcode = reader.byte()
        if 0x30 <= opcode <= 0x4F:  # lit0-lit31
            stack.append(opcode - 0x30)
        elif 0x50 <= opcode <= 0x6F:  # reg0-reg31
            stack.append(known[opcode - 0x50])
        elif 0x70 <= opcode <= 0x8F:  # breg0-breg31
            stack.append((known[opcode - 0x70] + reader.sleb()) & MASK)
        elif opcode == 0x92:  # bregx
            register = reader.uleb()
            stack.append((known[register] + reader.sleb()) & MASK)
        elif opcode in _CONSTANTS:
            stack.append(reader.fixed(_CONSTANTS[opcode]) & MASK)
        elif opcode == 0x10:
            stack.append(reader.uleb())
        elif opcode == 0x11:
            stack.append(reader.sleb() & MASK)
        elif opcode == 0x23:  # plus_uconst
            stack.append((stack.pop() + reader.uleb()) & MASK)
        elif opcode == 0x06:  # deref
            stack.append(self.word(stack.pop()))
        elif opcode == 0x94:  # deref_size
            size = reader.byte()
            stack.append(self.word(stack.pop()) & ((1 << 8 * size) - 1))
        elif opcode in _BINARY:
            second, first = stack.pop(), stack.pop()
            stack.append(_BINARY[opcode](first, second) & MASK)
        elif opcode in _SHUFFLE:
            _SHUFFLE[opcode](stack)
        elif opcode != 0x96:  # nop
            raise LookupError(f"DWARF operation {opcode:#x}")


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


_CONSTANTS = {
    0x03: "<Q", 0x08: "<B", 0x09: "<b", 0x0A: "<H", 0x0B: "<h",
    0x0C: "<I", 0x0D: "<i", 0x0E: "<Q", 0x0F: "<q",
}  # fmt: skip
_BINARY: dict[int, Callable[[int, int], int]] = {
    0x1A: lambda a, b: a & b,
    0x1C: lambda a, b: a - b,
    0x1E: lambda a, b: a * b,
    0x21: lambda a, b: a | b,
    0x22: lambda a, b: a + b,
    0x24: lambda a, b: a << min(b, 64),
    0x25: lambda a, b: a >> min(b, 64),
    0x26: lambda a, b: _signed(a) >> min(b, 64),
    0x27: lambda a, b: a ^ b,
    0x29: lambda a, b: int(a == b),
    0x2A: lambda a, b: int(_signed(a) >= _signed(b)),
    0x2B: lambda a, b: int(_signed(a) > _signed(b)),
    0x2C: lambda a, b: int(_signed(a) <= _signed(b)),
    0x2D: lambda a, b: int(_signed(a) < _signed(b)),
    0x2E: lambda a, b: int(a != b),
}
_SHUFFLE: dict[int, Callable[[list[int]], None]] = {
    0x12: lambda stack: stack.append(stack[-1]),  # dup
    0x13: lambda stack: stack.__delitem__(-1),  # drop
    0x14: lambda stack: stack.append(stack[-2]),  # over
    0x16: lambda stack: stack.extend((stack.pop(), stack.pop())),  # swap
    0x1F: lambda stack: stack.append(-stack.pop() & MASK),  # neg
    0x20: lambda stack: stack.append(~stack.pop() & MASK),  # not
}
