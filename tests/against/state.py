"""What goes into one execution and what comes out: the whole state a user program can see.

Knows the FXSAVE image's layout (SDM 1, "FXSAVE Area"); executes nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

# In the order of their numbers in ModRM and REX.
REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
NUMBER = {name: number for number, name in enumerate(REGISTERS)}

CF, PF, AF, ZF, SF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7
TF, IF, DF, OF, NT, AC, ID = 1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 14, 1 << 18, 1 << 21
STATUS = CF | PF | AF | ZF | SF | OF
FLAG_NAMES = {
    CF: "cf", PF: "pf", AF: "af", ZF: "zf", SF: "sf", TF: "tf", IF: "if", DF: "df", OF: "of",
    NT: "nt", AC: "ac", ID: "id",
}  # fmt: skip
FIXED_FLAGS = 0x202  # bit 1 reads as one, and user code runs with interrupts on
FLAGS = STATUS | TF | DF | NT | AC | ID  # what a case sets, and what is compared

FX_SIZE = 512
FX_USED = 416  # up to the end of XMM15; the rest is reserved or the system's
INITIAL_FCW = 0x37F
INITIAL_MXCSR = 0x1F80

HEAD = struct.Struct("<HHBxHQQII")  # fcw fsw ftw fop fip fdp mxcsr mxcsr_mask


@dataclass
class FloatState:
    """The content of an FXSAVE image, taken apart."""

    fcw: int = INITIAL_FCW
    fsw: int = 0
    ftw: int = 0  # abridged: a bit a physical register, one means in use
    fop: int = 0
    fip: int = 0
    fdp: int = 0
    mxcsr: int = INITIAL_MXCSR
    st: list[bytes] = field(default_factory=lambda: [bytes(10)] * 8)
    xmm: list[bytes] = field(default_factory=lambda: [bytes(16)] * 16)

    def pack(self) -> bytes:
        """The FXSAVE image."""
        head = HEAD.pack(
            self.fcw, self.fsw, self.ftw, self.fop, self.fip, self.fdp, self.mxcsr, 0xFFFF
        )
        stack = b"".join(value + bytes(6) for value in self.st)
        return (head + stack + b"".join(self.xmm)).ljust(FX_SIZE, b"\0")

    @classmethod
    def unpack(cls, image: bytes) -> FloatState:
        fcw, fsw, ftw, fop, fip, fdp, mxcsr, _mask = HEAD.unpack_from(image)
        stack = [image[32 + 16 * n : 42 + 16 * n] for n in range(8)]
        vectors = [image[160 + 16 * n : 176 + 16 * n] for n in range(16)]
        return cls(fcw, fsw, ftw, fop, fip, fdp, mxcsr, stack, vectors)


@dataclass
class Case:
    """One instruction and the state it starts from."""

    code: bytes
    entry: int
    registers: list[int]
    flags: int
    fx: bytes
    memory: list[tuple[int, bytes]] = field(default_factory=list)  # laid over the background
    bits: int = 64
    form: str = ""


@dataclass(frozen=True)
class Fault:
    """An exception the instruction raised: vector, error code, and CR2 for a page fault."""

    vector: int
    error_code: int = 0
    cr2: int = 0


@dataclass
class Outcome:
    """The state after the instruction, or at the exception it raised."""

    registers: list[int]
    rip: int
    flags: int
    fx: bytes
    memory: dict[int, bytes]  # aligned 8 bytes that differ from the background, by linear address
    fault: Fault | None = None
    hung: bool = False
