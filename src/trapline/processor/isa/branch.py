"""Near jumps, calls and returns, conditional branches and loops.

Far transfers are microcode.  In 64-bit code a branch to an address that is not canonical faults at
the branch, direct or not, as Intel's processors do it; a branch beyond the limit of CS in 16- and
32-bit code does so on all.
"""

from __future__ import annotations

from trapline.processor.isa.conditions import CONDITIONS
from trapline.processor.language import GP, Cpu, Operand, Value, const, instruction
from trapline.processor.language.registry import Description


def _is_far(cpu: Cpu, target: Operand) -> bool:
    """A far pointer: an immediate, or in memory 16 bits longer than the operand size."""
    if target.kind == "far":
        return True
    return target.in_memory and target.width == cpu.form.operand_width + 16


def _check_target(cpu: Cpu, target: Value, condition: Value | None, direct: bool) -> None:
    if cpu.form.bitness != 64:
        beyond = cpu.register("cs_limit").get().below(target)
    elif not direct or cpu.form.strays:
        width = _unused_bits(cpu)
        beyond = (target << width).ashr(width).differs(target)
    else:
        return
    cpu.fault(beyond if condition is None else beyond & condition, GP, 0)


def _unused_bits(cpu: Cpu) -> Value:
    """How many upper bits of a canonical address only repeat the sign: by CR4.LA57."""
    return cpu.register("cr4").get().bit(12).select(const(7, 64), const(16, 64))


def _go(cpu: Cpu, target: Operand, condition: Value | None = None) -> None:
    direct = target.kind == "branch"
    linear = target.get().zero_extend(64)
    _check_target(cpu, linear, condition, direct)
    cpu.branch(linear, condition, direct=direct)


@instruction("E9", "EB", "FF /4", "EA", "FF /5")
def jmp(cpu: Cpu, target: Operand) -> None:
    """RIP := target."""
    if _is_far(cpu, target):
        cpu.microcode("jmp_far")
    else:
        _go(cpu, target)


@instruction("E8", "FF /2", "9A", "FF /3")
def call(cpu: Cpu, target: Operand) -> None:
    """Push the address of the next instruction; RIP := target."""
    if _is_far(cpu, target):
        cpu.microcode("call_far")
        return
    direct = target.kind == "branch"
    linear = target.get().zero_extend(64)
    _check_target(cpu, linear, None, direct)
    cpu.push(cpu.next_rip.low(cpu.form.operand_width))
    cpu.branch(linear, kind="call", direct=direct)


@instruction("C3", "C2 iw")
def ret(cpu: Cpu, *released: Operand) -> None:
    """Pop RIP, then take the operand's number of bytes off the stack."""
    target = cpu.pop(cpu.form.operand_width).zero_extend(64)
    _check_target(cpu, target, None, direct=False)
    if released:
        pointer = cpu.stack_pointer()
        pointer.set(pointer.get() + released[0].get().zero_extend(pointer.width))
    cpu.branch(target, kind="return")


def _conditional_jump(code: int) -> Description:
    def jcc(cpu: Cpu, target: Operand) -> None:
        """RIP := target if the condition holds."""
        _go(cpu, target, cpu.flags.condition(code))

    return jcc


for _code, _condition in enumerate(CONDITIONS):
    instruction(f"7{_code:X}", f"0F 8{_code:X}", name=f"j{_condition}")(_conditional_jump(_code))


def _jump_if_zero(width: int) -> Description:
    def jump(cpu: Cpu, target: Operand) -> None:
        """RIP := target if the count register is 0."""
        _go(cpu, target, cpu.register("rcx", width).get().equals(0))

    return jump


for _name, _width in (("jcxz", 16), ("jecxz", 32), ("jrcxz", 64)):
    instruction("E3", name=_name)(_jump_if_zero(_width))


def _loop(cpu: Cpu, target: Operand, also: Value | None) -> None:
    count = cpu.register("rcx", cpu.form.address_width)
    left = count.get() - 1
    condition = left.differs(0)
    count.set(left)
    _go(cpu, target, condition if also is None else condition & also)


@instruction("E2")
def loop(cpu: Cpu, target: Operand) -> None:
    """Count RCX down; RIP := target unless it is 0 now."""
    _loop(cpu, target, None)


@instruction("E1")
def loope(cpu: Cpu, target: Operand) -> None:
    """Count RCX down; RIP := target unless it is 0 now or ZF is 0."""
    _loop(cpu, target, cpu.flags.zf)


@instruction("E0")
def loopne(cpu: Cpu, target: Operand) -> None:
    """Count RCX down; RIP := target unless it is 0 now or ZF is 1."""
    _loop(cpu, target, cpu.flags.zf ^ 1)
