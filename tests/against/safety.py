"""What must never run on the host: split locks, system calls, privileged and far instructions."""

from __future__ import annotations

from iced_x86 import (
    Decoder,
    DecoderOptions,
    FlowControl,
    Instruction,
    MemorySizeExt,
    Mnemonic,
    OpCodeInfo,
    OpKind,
    Register,
    RegisterExt,
)

from tests.against.layout import FS_BASE, GS_BASE, LINE, NON_CANONICAL, REGIONS
from tests.against.state import NUMBER, Case

_WHOLE = (1 << 64) - 1
_M = Mnemonic
_SYSTEM = frozenset((
    _M.SYSCALL, _M.SYSENTER, _M.SYSEXIT, _M.SYSEXITQ, _M.SYSRET, _M.SYSRETQ, _M.INT, _M.INT1,
    _M.INT3, _M.INTO, _M.IRET, _M.IRETD, _M.IRETQ, _M.HLT, _M.RSM, _M.VMCALL, _M.VMMCALL, _M.VMFUNC,
    _M.ENCLU, _M.XABORT, _M.XBEGIN, _M.MONITOR, _M.MWAIT, _M.MONITORX, _M.MWAITX, _M.UMWAIT,
    _M.TPAUSE, _M.SENDUIPI, _M.WRPKRU, _M.WRFSBASE, _M.WRGSBASE, _M.CLI, _M.STI,
))  # fmt: skip
_SURROUNDINGS = 1 << 24
_NEAR = (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)
_BIT_STRINGS = frozenset((Mnemonic.BT, Mnemonic.BTS, Mnemonic.BTR, Mnemonic.BTC))
_NUMBERS = {getattr(Register, name.upper()): number for name, number in NUMBER.items()}


class Unsafe(Exception):
    """A case the host must not execute."""


def refuse(case: Case) -> None:
    """Raise Unsafe for a case that could disturb the host or the worker."""
    # Unchecked, so that a LOCK which is #UD is still understood.
    options = DecoderOptions.NO_INVALID_CHECK
    instruction = Decoder(case.bits, case.code, options, ip=case.entry).decode()
    if instruction.is_invalid:
        # Cut off by the end of the code page, or unknown.
        if 0xF0 in case.code:
            raise Unsafe("a LOCK that is not understood")
        return
    if instruction.len != len(case.code):
        raise Unsafe("more than one instruction")
    described = OpCodeInfo(instruction.code)
    if (
        instruction.mnemonic in _SYSTEM
        or instruction.flow_control == FlowControl.INTERRUPT
        or described.is_privileged
        or described.is_input_output
        or instruction.is_call_far
        or instruction.is_call_far_indirect
        or instruction.is_jmp_far
        or instruction.is_jmp_far_indirect
        or instruction.mnemonic == Mnemonic.RETF
    ):
        raise Unsafe(f"{instruction} belongs to the system")
    if locks(instruction):
        linear, size = locked_access(case, instruction)
        if linear % LINE + size > LINE:
            raise Unsafe(f"{instruction} would be a split lock")
    if instruction.mnemonic in _BIT_STRINGS and instruction.op_kind(0) == OpKind.MEMORY:
        linear, _size = locked_access(case, instruction)
        if not _is_ours(linear):
            raise Unsafe(f"{instruction} reaches the worker's own memory")
    for number in range(instruction.op_count):
        if instruction.op_kind(number) in _NEAR:
            target = instruction.near_branch_target
            if case.entry <= target < case.entry + instruction.len:
                raise Unsafe(f"{instruction} branches into itself")


def _is_ours(linear: int) -> bool:
    """Whether an address is a region's, or one at which the worker has nothing at all."""
    for region in REGIONS:
        if region.linear - _SURROUNDINGS <= linear < region.end + _SURROUNDINGS:
            return True
    return linear >= NON_CANONICAL


def locks(instruction: Instruction) -> bool:
    """Whether an instruction locks an access to memory."""
    in_memory = any(instruction.op_kind(n) == OpKind.MEMORY for n in range(instruction.op_count))
    return in_memory and (instruction.has_lock_prefix or instruction.mnemonic == Mnemonic.XCHG)


def value_of(case: Case, register: int) -> int:
    """What a general register holds before the case, in its own width."""
    if register == Register.NONE:
        return 0
    whole = case.registers[_NUMBERS[RegisterExt.full_register(register)]]
    return whole & (1 << 8 * RegisterExt.size(register)) - 1


def effective_linear(case: Case, instruction: Instruction, away: int = 0) -> int:
    """The linear address of an instruction's ModRM operand, or of so many bytes away."""
    if instruction.is_ip_rel_memory_operand:
        offset = instruction.ip_rel_memory_address
    else:
        base, index = instruction.memory_base, instruction.memory_index
        offset = (
            value_of(case, base)
            + value_of(case, index) * instruction.memory_index_scale
            + instruction.memory_displacement
        )
    used = instruction.memory_base or instruction.memory_index
    if used:
        small = RegisterExt.size(used) == 4
    else:
        small = case.bits == 32 or instruction.memory_displ_size == 4
    offset = offset + away & (0xFFFF_FFFF if small else _WHOLE)
    segment = {Register.FS: FS_BASE, Register.GS: GS_BASE}.get(instruction.memory_segment, 0)
    linear = offset + segment
    return linear & (_WHOLE if case.bits == 64 else 0xFFFF_FFFF)


def locked_access(case: Case, instruction: Instruction) -> tuple[int, int]:
    """Linear address and size of the access an instruction locks."""
    size = MemorySizeExt.size(instruction.memory_size)
    away = 0
    if instruction.mnemonic in _BIT_STRINGS and instruction.op_kind(1) == OpKind.REGISTER:
        width = 8 * size
        bit = value_of(case, instruction.op_register(1))
        away = ((bit ^ 1 << width - 1) - (1 << width - 1)) // width * size
    return effective_linear(case, instruction, away), size
