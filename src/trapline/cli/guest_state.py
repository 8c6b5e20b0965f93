"""A stopped guest as text: registers, the instruction it stands at, the last exit."""

from __future__ import annotations

from collections.abc import Iterator

from trapline.arch.registers import EFER_LMA
from trapline.kvm import Sregs, Vcpu, abi, exits
from trapline.machine import Board
from trapline.processor import disassemble

_GENERAL = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
)
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt")
_LONGEST = 15
_BAD = "(bad)"
_MOST_OTHERS = 16
_ACTIVITIES = {
    abi.MpState.RUNNABLE: "running",
    abi.MpState.UNINITIALIZED: "not started",
    abi.MpState.INIT_RECEIVED: "waiting for SIPI",
    abi.MpState.HALTED: "halted",
    abi.MpState.SIPI_RECEIVED: "starting",
}


def describe(board: Board, last_exit: exits.Exit | None, number: int = 0) -> str:
    """Several lines, each with its end: one vCPU's, and where the others are."""
    return "".join(f"  {line}\n" for line in _lines(board, last_exit, number))


def _lines(board: Board, last_exit: exits.Exit | None, number: int) -> Iterator[str]:
    vcpu = board.vcpus[number]
    if len(board.vcpus) > 1:
        yield f"vCPU {number} of {len(board.vcpus)}, {_activity(vcpu)}"
    regs, sregs, debug = vcpu.get_regs(), vcpu.get_sregs(), vcpu.get_debugregs()
    yield f"rip {regs.rip:016x}  {_instruction(board, vcpu, sregs, regs.rip)}"
    for names in _GENERAL:
        yield "  ".join(f"{name:<3} {getattr(regs, name):016x}" for name in names)
    yield f"rflags {regs.rflags:x}  mode {_mode(sregs)}  cpl {sregs.ss.dpl}"
    for names in (_SEGMENTS[:4], _SEGMENTS[4:]):
        yield "  ".join(_segment(sregs, name) for name in names)
    yield (
        f"gdt {sregs.gdt.base:x}/{sregs.gdt.limit:x}  idt {sregs.idt.base:x}/{sregs.idt.limit:x}"
        f"  cr0 {sregs.cr0:x}  cr2 {sregs.cr2:x}  cr3 {sregs.cr3:x}  cr4 {sregs.cr4:x}"
        f"  efer {sregs.efer:x}"
    )
    yield f"dr6 {debug.dr6:x}  dr7 {debug.dr7:x}"
    if last_exit is not None:
        yield f"last exit: {last_exit}"
    for other, vcpu in enumerate(board.vcpus[:_MOST_OTHERS]):
        if other != number:
            yield _in_short(board, vcpu, other)
    if len(board.vcpus) > _MOST_OTHERS:
        yield f"and {len(board.vcpus) - _MOST_OTHERS} more vCPUs"


def _in_short(board: Board, vcpu: Vcpu, number: int) -> str:
    if vcpu.get_mp_state() == abi.MpState.UNINITIALIZED:
        return f"vCPU {number}, {_activity(vcpu)}"
    sregs, rip = vcpu.get_sregs(), vcpu.regs.rip
    where = f"rip {rip:016x}  {_mode(sregs)}  {_instruction(board, vcpu, sregs, rip)}"
    return f"vCPU {number}, {_activity(vcpu)}: {where}"


def _activity(vcpu: Vcpu) -> str:
    return _ACTIVITIES[abi.MpState(vcpu.get_mp_state())]


def _segment(sregs: Sregs, name: str) -> str:
    one = getattr(sregs, name)
    return f"{name:<3} {one.selector:04x} {one.base:x}/{one.limit:x}"


def _bitness(sregs: Sregs) -> int:
    if sregs.efer & EFER_LMA and sregs.cs.l:
        return 64
    return 32 if sregs.cs.db else 16


def _mode(sregs: Sregs) -> str:
    if not sregs.cr0 & 1:
        return "real"
    bitness = _bitness(sregs)
    if bitness == 64:
        return "64-bit"
    return f"{bitness}-bit {'compatibility' if sregs.efer & EFER_LMA else 'protected'}"


def _instruction(board: Board, vcpu: Vcpu, sregs: Sregs, rip: int) -> str:
    """The bytes at RIP and what they say, or that there are none."""
    bitness = _bitness(sregs)
    linear = rip if bitness == 64 else sregs.cs.base + rip & 0xFFFFFFFF
    code = read_linear(board, vcpu, linear, _LONGEST)
    if not code:
        return "(no memory there)"
    # The first bytes that are an instruction at all are the whole of it.
    texts = ((i, disassemble(code[:i], rip, bitness)) for i in range(1, len(code) + 1))
    length, text = next((found for found in texts if found[1] != _BAD), (len(code), _BAD))
    return f"{code[:length].hex(' ')}  {text}"


def read_linear(board: Board, vcpu: Vcpu, linear: int, size: int) -> bytes:
    """What of a range of linear addresses is memory, from its start."""
    data = b""
    while len(data) < size:
        part = min(size - len(data), 4096 - (linear + len(data) & 4095))
        there = vcpu.translate(linear + len(data))
        found = board.memory.read(there.physical_address, part) if there.valid else b""
        if not found:
            break
        data += found
    return data
