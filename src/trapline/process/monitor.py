"""The monitor: the few hundred bytes of ring 0 that the program runs on.

It enables bus-lock detection, turns system calls and exceptions into port writes and goes back.
What an exit means and what is done about it is the VMM's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from iced_x86 import BlockEncoder, Code, Instruction, MemoryOperand, Register

from trapline.arch.debug import DR6_ACTIVE_LOW
from trapline.arch.exception import WITH_ERROR_CODE, Vector
from trapline.process.layout import (
    KERNEL_CS,
    MONITOR_CODE,
    MONITOR_TABLES,
    PAGE,
    PORT_READY,
    PORT_SYSCALL,
    PORT_VECTOR,
    USER_CS,
)

VECTORS = 32
DEBUGCTL = 0x1D9
DEBUGCTL_BLD = 4
CPUID_7_ECX_BUS_LOCK_DETECT = 24

# A vCPU's page: its TSS, its stacks.  What an exception leaves at the top of the stack:
# {cr2 or dr6, error code, rip, cs, rflags, rsp, ss}.
TSS_OFFSET = 0
TSS_SIZE = 104
NMI_STACK_TOP = 0x800
# What a flush by NMI leaves at the top of its stack: {rax, rip, cs, rflags, rsp, ss}.
FLUSH_FRAME = struct.Struct("<6Q")
FLUSH_FRAME_OFFSET = NMI_STACK_TOP - FLUSH_FRAME.size
FLUSH_POP = 7  # where in its code RAX comes back
STACK_TOP = 0x1000
FRAME = struct.Struct("<7Q")
FRAME_OFFSET = STACK_TOP - FRAME.size

_RSP = MemoryOperand(Register.RSP)
_RSP_8 = MemoryOperand(Register.RSP, displ=8, displ_size=1)


@dataclass(frozen=True, slots=True)
class Monitor:
    """The assembled code and the linear addresses of its entries."""

    code: bytes
    start: int  # EDI: whether to enable bus-lock detection; then as `leave`
    system_call: int
    sysret: int
    leave: int  # IRETQ with the frame above at RSP
    leave_flushed: int  # the same, after a TLB flush
    vectors: tuple[int, ...]
    exits: frozenset[int]  # where the OUT instructions are
    returns: frozenset[int]  # instructions after them: the program's state is what was last set


@dataclass
class _Assembler:
    """Instructions with labels, encoded at the monitor's address."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    outs: list[int] = field(default_factory=list)
    _pending: list[str] = field(default_factory=list)

    def label(self, name: str) -> None:
        self._pending.append(name)

    def emit(self, instruction: Instruction) -> None:
        # BlockEncoder takes branch targets as the IPs of instructions: we number them.
        instruction.ip = len(self.instructions) + 1
        for name in self._pending:
            self.labels[name] = len(self.instructions)
        self._pending.clear()
        self.instructions.append(instruction)

    def op(self, code: Any) -> None:
        self.emit(Instruction.create(code))

    def reg(self, code: Any, register: Any) -> None:
        self.emit(Instruction.create_reg(code, register))

    def reg_reg(self, code: Any, first: Any, second: Any) -> None:
        self.emit(Instruction.create_reg_reg(code, first, second))

    def reg_imm(self, code: Any, register: Any, immediate: int) -> None:
        self.emit(Instruction.create_reg_u32(code, register, immediate))

    def rsp_add(self, size: int) -> None:
        self.emit(Instruction.create_reg_i32(Code.ADD_RM64_IMM8, Register.RSP, size))

    def out(self, port: int) -> None:
        self.outs.append(len(self.instructions))
        self.emit(Instruction.create_u32_reg(Code.OUT_IMM8_AL, port, Register.AL))

    def branch(self, code: Any, label: str) -> None:
        self.emit(Instruction.create_branch(code, self.labels[label] + 1))


@cache
def assemble() -> Monitor:
    """Put the monitor together at its place."""
    a = _Assembler()
    _leaving(a)
    _starting(a)
    _system_call(a)
    for vector in range(VECTORS):
        _vector(a, vector)
    encoder = BlockEncoder(64)
    encoder.add_many(a.instructions)
    code = encoder.encode(MONITOR_CODE)
    places = _places(code, len(a.instructions))
    at = {name: places[index] for name, index in a.labels.items()}
    outs = frozenset(places[index] for index in a.outs)
    after_out = {places[index + 1] for index in a.outs}
    return Monitor(
        code=code,
        start=at["start"],
        system_call=at["system_call"],
        sysret=at["sysret"],
        leave=at["leave"],
        leave_flushed=at["leave_flushed"],
        vectors=tuple(at[f"vector{vector}"] for vector in range(VECTORS)),
        exits=outs,
        returns=frozenset({place for place in places if place < at["start"]} | after_out),
    )


def _places(code: bytes, count: int) -> list[int]:
    from iced_x86 import Decoder

    places = [instruction.ip for instruction in Decoder(64, code, ip=MONITOR_CODE)]
    assert len(places) == count
    return places


def _leaving(a: _Assembler) -> None:
    """The ways back to the program; nothing here can fault once the VMM has checked RIP."""
    a.label("leave_flushed")
    a.reg(Code.PUSH_R64, Register.RAX)
    a.reg_reg(Code.MOV_R64_CR, Register.RAX, Register.CR3)
    a.reg_reg(Code.MOV_CR_R64, Register.CR3, Register.RAX)
    a.reg(Code.POP_R64, Register.RAX)
    a.label("leave")
    a.rsp_add(16)
    a.op(Code.IRETQ)
    a.label("sysret")
    a.op(Code.SYSRETQ)


def _starting(a: _Assembler) -> None:
    """What a processor does first: DEBUGCTL.BLD, if CPUID shows it and the VMM wants it (EDI)."""
    a.label("start")
    a.reg_imm(Code.MOV_R32_IMM32, Register.EAX, 7)
    a.reg_reg(Code.XOR_R32_RM32, Register.ECX, Register.ECX)
    a.op(Code.CPUID)
    a.reg_imm(Code.SHR_RM32_IMM8, Register.ECX, CPUID_7_ECX_BUS_LOCK_DETECT)
    a.reg_reg(Code.AND_R32_RM32, Register.EDI, Register.ECX)
    a.reg_imm(Code.AND_RM32_IMM32, Register.EDI, 1)
    a.reg_imm(Code.SHL_RM32_IMM8, Register.EDI, DEBUGCTL_BLD.bit_length() - 1)
    a.reg_imm(Code.MOV_R32_IMM32, Register.ECX, DEBUGCTL)
    a.reg_reg(Code.XOR_R32_RM32, Register.EDX, Register.EDX)
    a.reg_reg(Code.MOV_R32_RM32, Register.EAX, Register.EDI)
    # Written only where it says something: processors without the feature need not have the MSR.
    a.reg_reg(Code.TEST_RM32_R32, Register.EAX, Register.EAX)
    skip = len(a.instructions) + 2
    a.emit(Instruction.create_branch(Code.JE_REL8_64, skip + 1))
    a.op(Code.WRMSR)
    a.out(PORT_READY)
    a.branch(Code.JMP_REL32_64, "leave")


def _system_call(a: _Assembler) -> None:
    """LSTAR: no stack is needed, the program's registers stay where they are."""
    a.label("system_call")
    a.out(PORT_SYSCALL)
    a.op(Code.SYSRETQ)


def _vector(a: _Assembler, vector: int) -> None:
    """One exception: complete the frame, leave, go back."""
    a.label(f"vector{vector}")
    if vector == 2:
        # The VMM's way to have a processor that it stopped in the program flush its TLB.
        a.reg(Code.PUSH_R64, Register.RAX)
        a.reg_reg(Code.MOV_R64_CR, Register.RAX, Register.CR3)
        a.reg_reg(Code.MOV_CR_R64, Register.CR3, Register.RAX)
        a.reg(Code.POP_R64, Register.RAX)
        a.op(Code.IRETQ)
        return
    if vector not in WITH_ERROR_CODE:
        a.emit(Instruction.create_i32(Code.PUSHQ_IMM8, 0))
    cause = {1: (Code.MOV_R64_DR, Register.DR6), 14: (Code.MOV_R64_CR, Register.CR2)}.get(vector)
    if cause is None:
        a.reg(Code.PUSH_R64, Register.RAX)
    else:
        a.reg(Code.PUSH_R64, Register.RAX)
        a.reg(Code.PUSH_R64, Register.RAX)
        a.reg_reg(cause[0], Register.RAX, cause[1])
        a.emit(Instruction.create_mem_reg(Code.MOV_RM64_R64, _RSP_8, Register.RAX))
        a.reg(Code.POP_R64, Register.RAX)
    if vector == 1:
        # Active-low bits stay as they are until written: put DR6.BLD back before the next #DB.
        # SDM 3B, "Debug Status Register (DR6)".
        a.reg(Code.PUSH_R64, Register.RAX)
        a.reg_imm(Code.MOV_R32_IMM32, Register.EAX, DR6_ACTIVE_LOW)
        a.reg_reg(Code.MOV_DR_R64, Register.DR6, Register.RAX)
        a.reg(Code.POP_R64, Register.RAX)
    a.out(PORT_VECTOR + vector)
    a.branch(Code.JMP_REL32_64, "leave")


_GATE = struct.Struct("<HHBBHII")
_INTERRUPT_GATE = 0x8E
_DPL_3 = 0x60


def idt(monitor: Monitor) -> bytes:
    """The interrupt descriptor table: interrupt gates; INT3 and INTO may come from the program.

    The gates of vectors that no exception has are there for INT n to be refused by (#GP).
    """
    gates = []
    for vector in range(256):
        place = monitor.vectors[vector if vector < VECTORS else Vector.GP]
        rights = _INTERRUPT_GATE | (_DPL_3 if vector in (3, 4) else 0)
        stack = 1 if vector == 2 else 0  # an NMI may come while RSP is still the program's
        gates.append(
            _GATE.pack(
                place & 0xFFFF, KERNEL_CS, stack, rights, place >> 16 & 0xFFFF, place >> 32, 0
            )
        )
    return b"".join(gates)


def gdt() -> bytes:
    """Linux's order: kernel code and data, 32-bit user code, user data, 64-bit user code."""
    return struct.pack(
        "<8Q",
        0,
        0x00CF9B000000FFFF,
        0x00AF9B000000FFFF,
        0x00CF93000000FFFF,
        0x00CFFB000000FFFF,
        0x00CFF3000000FFFF,
        0x00AFFB000000FFFF,
        0,
    )


def tss(page: int) -> bytes:
    """The task state of the vCPU whose page is at this linear address: its stacks, no ports."""
    task = bytearray(TSS_SIZE)
    struct.pack_into("<Q", task, 4, page + STACK_TOP)  # RSP0
    struct.pack_into("<Q", task, 36, page + NMI_STACK_TOP)  # IST1
    struct.pack_into("<H", task, 102, TSS_SIZE)  # no I/O map: every port is closed to CPL 3
    return bytes(task)


# All vCPUs share the IDT, a page of its own, and the GDT, which only is read: behind the code.
IDT_LINEAR = MONITOR_TABLES
IDT_LIMIT = 256 * 16 - 1
GDT_OFFSET = 0x800
GDT_LINEAR = MONITOR_CODE + GDT_OFFSET
GDT_LIMIT = 8 * 8 - 1


def shared_pages(monitor: Monitor) -> bytes:
    """The two pages at the monitor's start."""
    return (monitor.code.ljust(GDT_OFFSET, b"\0") + gdt()).ljust(PAGE, b"\0") + idt(monitor)


STAR = (USER_CS - 3 - 16) << 48 | 3 << 48 | KERNEL_CS << 32
