"""The oracle: runs one SSE or x87 instruction on the host's processor for many records at once.

The instruction stands in a loop of machine code in an executable page, and each record carries
the operands and the control register in, and results, flags and whether it faulted out.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from iced_x86 import Encoder, Instruction, MemoryOperand, Register

_SSE_HEAD = bytes.fromhex(
    "4883ec08"  #         sub rsp, 8
    "0fae1c24"  #         stmxcsr [rsp]
)
_SSE_LOAD = bytes.fromhex(
    "4c8d0d00000000"  #   lea r9, [rip + NEXT]: where a fault goes on
    "0f1007"  #           movups xmm0, [rdi]
    "0f104f10"  #         movups xmm1, [rdi + 16]
    "0f105720"  #         movups xmm2, [rdi + 32]
    "488b4740"  #         mov rax, [rdi + 64]
    "0fae5748"  #         ldmxcsr [rdi + 72]
)
_SSE_STORE = bytes.fromhex(
    "0fae5f4c"  #         stmxcsr [rdi + 76]
    "0f114730"  #         movups [rdi + 48], xmm0
    "48894740"  #         mov [rdi + 64], rax
    "9c8f4750"  #         pushfq; pop [rdi + 80]
)
_SSE_NEXT = bytes.fromhex(
    "4883c760"  #         add rdi, 96
    "48ffce"  #           dec rsi
    "0f85"  #             jnz LOAD
)
_SSE_END = bytes.fromhex(
    "0fae1424"  #         ldmxcsr [rsp]
    "4883c408c3"  #       add rsp, 8; ret
)
_SIGFPE_HANDLER = bytes.fromhex(  # rdx: ucontext
    "488b82e0000000"  #   mov rax, [rdx + 224]: uc_mcontext.fpregs
    "8b4818"  #           mov ecx, [rax + 24]: mxcsr
    "4c8b4268"  #         mov r8, [rdx + 104]: rdi, the record
    "4189484c"  #         mov [r8 + 76], ecx
    "41c7405801000000"  # mov dword [r8 + 88], 1
    "c74018801f0000"  #   mov dword [rax + 24], 0x1f80
    "488b4230"  #         mov rax, [rdx + 48]: r9
    "488982a8000000"  #   mov [rdx + 168], rax: rip
    "c3"  #               ret
)
_X87_HEAD = bytes.fromhex("dbe3")  #  fninit
_X87_LOAD = bytes.fromhex(
    "d96f30"  #           fldcw [rdi + 48]
    "db6f10"  #           fld tbyte [rdi + 16]
    "db2f"  #             fld tbyte [rdi]
)
_X87_STORE = bytes.fromhex(
    "9c8f87b8000000"  #   pushfq; pop [rdi + 184]
    "dd7740"  #           fnsave [rdi + 64], which takes no pending exception
    "4881c7c0000000"  #   add rdi, 192
    "48ffce"  #           dec rsi
    "0f85"  #             jnz LOAD
)
_RET = b"\xc3"

_SSE_IN = struct.Struct("<QQQQQQQQQIIQQ")
_SSE_OUT = struct.Struct("<48xQQQIIQQ")
_X87_IN = struct.Struct("<QQQQ16xI12x112x16x")
_X87_OUT = struct.Struct("<32xQQ16xHHHHHH16x10s10s10s10s10s10s10s10s4x8xQ")
_LOW = (1 << 64) - 1


@dataclass(frozen=True)
class SseRecord:
    """What XMM0-XMM2, RAX and MXCSR hold before the instruction."""

    a: int
    b: int
    mxcsr: int
    c: int = 0
    rax: int = 0


@dataclass(frozen=True)
class SseResult:
    """XMM0, RAX, MXCSR and RFLAGS after it; if it faulted only MXCSR means anything."""

    xmm0: int
    rax: int
    mxcsr: int
    rflags: int
    faulted: bool


@dataclass(frozen=True)
class X87Record:
    """What ST0, ST1, the memory operand and the control word hold before the instruction."""

    a: int
    b: int
    control: int
    memory: int = 0


@dataclass(frozen=True)
class X87Result:
    """The register stack from the top, its tags, the memory operand, status word and RFLAGS."""

    stack: tuple[int, ...]
    status: int
    tags: int
    memory: int
    rflags: int

    @property
    def flags(self) -> int:
        return self.status & 0x3F

    @property
    def c1(self) -> int:
        return self.status >> 9 & 1

    @property
    def codes(self) -> int:
        """C3 C2 C1 C0 as bits 3:0."""
        return (self.status >> 14 & 1) << 3 | self.status >> 8 & 7


class Page:
    """Machine code in an executable page, callable with (records, count)."""

    def __init__(self, code: bytes) -> None:
        self._page = mmap.mmap(
            -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        )
        self._page.write(code)
        self.linear = ctypes.addressof(ctypes.c_char.from_buffer(self._page))

    def __call__(self, records: bytearray, count: int) -> None:
        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)(self.linear)
        function(ctypes.addressof(ctypes.c_char.from_buffer(records)), count)


def _loop(head: bytes, body: bytes, end: bytes) -> bytes:
    """`body` ends in the opcode of JNZ, which goes back to the body's beginning."""
    return head + body + struct.pack("<i", -len(body) - 4) + end


def assemble(*instructions: Instruction | bytes) -> bytes:
    """The machine code of the instructions; no operand may be relative to RIP."""
    encoder = Encoder(64)
    code = b""
    for instruction in instructions:
        if isinstance(instruction, Instruction):
            encoder.encode(instruction, 0)
            instruction = encoder.take_buffer()
        code += instruction
    return code


def memory(displacement: int = 32) -> MemoryOperand:
    """The x87 record's memory operand."""
    return MemoryOperand(Register.RDI, displ=displacement, displ_size=1)


def run_sse(code: bytes, records: Sequence[SseRecord]) -> list[SseResult]:
    """One result a record; an unmasked exception is a result like any other."""
    load = bytearray(_SSE_LOAD)
    load[3:7] = struct.pack("<i", len(_SSE_LOAD) - 7 + len(code) + len(_SSE_STORE))
    page = Page(_loop(_SSE_HEAD, bytes(load) + code + _SSE_STORE + _SSE_NEXT, _SSE_END))
    block = bytearray()
    for r in records:
        block += _SSE_IN.pack(
            r.a & _LOW, r.a >> 64, r.b & _LOW, r.b >> 64, r.c & _LOW, r.c >> 64,
            0, 0, r.rax, r.mxcsr, 0, 0, 0,
        )  # fmt: skip
    with _sigfpe():
        page(block, len(records))
    results = []
    for low, high, rax, _, mxcsr, rflags, faulted in _SSE_OUT.iter_unpack(block):
        results.append(SseResult(high << 64 | low, rax, mxcsr, rflags, faulted != 0))
    return results


def run_x87(code: bytes, records: Sequence[X87Record]) -> list[X87Result]:
    """One result a record; unmasked exceptions stay pending and never fault."""
    page = Page(_loop(_X87_HEAD, _X87_LOAD + code + _X87_STORE, _RET))
    block = bytearray()
    for r in records:
        image = r.a.to_bytes(16, "little") + r.b.to_bytes(16, "little")
        image += r.memory.to_bytes(16, "little") + r.control.to_bytes(4, "little")
        block += image.ljust(192, b"\0")
    page(block, len(records))
    results = []
    for low, high, _, _, status, _, tags, _, *rest in _X87_OUT.iter_unpack(block):
        stack = tuple(int.from_bytes(register, "little") for register in rest[:8])
        results.append(X87Result(stack, status, tags, high << 64 | low, rest[8]))
    return results


class _Sigaction(ctypes.Structure):
    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


@contextmanager
def _sigfpe() -> Iterator[None]:
    """Lets the machine code above see the SIGFPE of an unmasked exception."""
    handler = Page(_SIGFPE_HANDLER)
    libc = ctypes.CDLL(None, use_errno=True)
    siginfo, nodefer = 4, 0x40000000
    ours, before = _Sigaction(handler=handler.linear, flags=siginfo | nodefer), _Sigaction()
    if libc.sigaction(signal.SIGFPE, ctypes.byref(ours), ctypes.byref(before)):
        raise OSError(ctypes.get_errno(), "sigaction")
    try:
        yield
    finally:
        libc.sigaction(signal.SIGFPE, ctypes.byref(before), None)
