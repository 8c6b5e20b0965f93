"""The x87 unit around one instruction: readiness, the register stack, exceptions, the status word.

FCS and FDS are not kept: they are always zero, as on processors that say so
(CPUID.7.0:EBX[13]).  An unmasked exception is #MF at the next waiting instruction, as with
CR0.NE = 1; what external hardware does with CR0.NE = 0 is not modelled.
"""

from __future__ import annotations

from trapline.arch.registers import (
    FSW_B,
    FSW_C0,
    FSW_C1,
    FSW_C2,
    FSW_C3,
    FSW_DE,
    FSW_ES,
    FSW_IE,
    FSW_OE,
    FSW_SF,
    FSW_TOP,
    FSW_TOP_SHIFT,
    FSW_UE,
    FSW_ZE,
)
from trapline.processor.language import Cpu, Operand, Place, Value, const

CONDITIONS = FSW_C0 | FSW_C1 | FSW_C2 | FSW_C3
UNDERFLOW = FSW_IE | FSW_SF  # of the stack, C1 clear
OVERFLOW = FSW_IE | FSW_SF | FSW_C1
SUMMARY = FSW_ES | FSW_B

# Unmasked exceptions that keep an instruction from having its result (SDM 1, "Unmasked
# Exceptions"): those on the operands, and for a store also those of a result that does not fit.
ON_OPERANDS = FSW_IE | FSW_DE | FSW_ZE
ON_STORE = ON_OPERANDS | FSW_OE | FSW_UE

INDEFINITE = 0xFFFFC000000000000000
PUSHED = 7  # ST(7) before a push is ST(0) after it


def ready(cpu: Cpu, *, waits: bool = True) -> None:
    """#NM if CR0 says so; #MF if an exception is pending and the instruction waits for it."""
    cpu.primitive("x87_ready", widths=(), unit="x87", of=(waits,))


def _word(value: Value | int) -> Value:
    return const(value, 16) if isinstance(value, int) else value


def summarised(status: Value, control: Value) -> Value:
    """The status word with ES and B as the flags and masks demand."""
    pending = (status.low(6) & ~control.low(6)).differs(0)
    return status & ~SUMMARY | pending.select(_word(SUMMARY), _word(0))


def computed(cpu: Cpu, operation: str, *args: Value, of: tuple[object, ...] = ()) -> Value:
    """What an operation gives that has no result but its status: exceptions and conditions."""
    return results(cpu, operation, *args, widths=(), of=of)[0]


def results(
    cpu: Cpu, operation: str, *args: Value, widths: tuple[int, ...], of: tuple[object, ...] = ()
) -> tuple[Value, ...]:
    """The results of an operation under the present control word; its status comes last."""
    control = cpu.register("fcw", 16).get()
    widths = (*widths, 16)
    return cpu.primitive("x87", control, *args, widths=widths, unit="x87", of=(operation, *of))


class Unit:
    """The unit during one instruction that is not one of control: its state as it was before.

    Registers are named by the stack as it was, a number or an operand ST(i).
    """

    def __init__(self, cpu: Cpu, memory: Operand | None = None) -> None:
        """`memory`: the operand the data pointer is to remember."""
        ready(cpu)
        self.cpu = cpu
        self.status = cpu.register("fsw", 16).get()
        self.control = cpu.register("fcw", 16).get()
        self.tags = cpu.register("ftw", 8).get()
        cpu.register("fip").set(cpu.rip)
        cpu.register("fop", 16).set(cpu.float_opcode)
        if memory is not None:
            cpu.register("fdp").set(cpu.effective_address(memory))

    # -- the stack ---------------------------------------------------------------------------------

    def register(self, number: int) -> Operand:
        return Operand(self.cpu, -1, Place("st", 80, index=number), "st")

    def tag(self, register: int | Operand) -> Value:
        """The bit of a register in the tags."""
        cpu, top = self.cpu, self.status.bits(FSW_TOP_SHIFT, 3)
        number = const(register, 8) if isinstance(register, int) else cpu.number(register)
        return const(1, 8) << (top.zero_extend(8) + number & 7)

    def is_empty(self, *registers: int | Operand) -> Value:
        """Whether any of them is: stack underflow, if it is read."""
        bits = const(0, 8)
        for register in registers:
            bits = bits | self.tag(register)
        return self.rare((self.tags & bits).differs(bits))

    def is_full(self) -> Value:
        """Whether a push would overflow."""
        return self.rare((self.tags & self.tag(PUSHED)).differs(0))

    def rare(self, condition: Value) -> Value:
        """The condition; native code leaves to the reference engine where it holds."""
        return self.cpu.primitive("x87_rare", condition, widths=(1,), unit="x87")[0]

    # -- the end -----------------------------------------------------------------------------------

    def conclude(
        self,
        status: Value | int = 0,
        *,
        stops: int = ON_OPERANDS,
        conditions: int | Value = FSW_C1,
        moves: int | Value = 0,
        tags: Value | None = None,
    ) -> Value:
        """The instruction raised the exceptions in `status` and set the condition codes in it.
        Gives whether it has its result: not if one among `stops` is unmasked.

        `conditions`: which codes it replaces.  With a result, `moves` is added to TOP and the
        tags become `tags`, if they are given.
        """
        cpu = self.cpu
        status, conditions = _word(status), _word(conditions)
        unmasked = cpu.primitive(
            "x87_unmasked", status.low(6), self.control.low(6), widths=(6,), unit="x87"
        )[0]
        completes = (unmasked & stops & 0x3F).equals(0)
        after = self.status & ~conditions | status
        after = after | unmasked.differs(0).select(_word(SUMMARY), _word(0))
        if isinstance(moves, Value) or moves:
            step = moves if isinstance(moves, Value) else const(moves, 3)
            top = (self.status.bits(FSW_TOP_SHIFT, 3) + step).zero_extend(16) << FSW_TOP_SHIFT
            after = completes.select(after & ~FSW_TOP | top, after)
        cpu.register("fsw", 16).set(after)
        if tags is not None:
            cpu.register("ftw", 8).set(completes.select(tags, self.tags))
        return completes

    def popped(self, count: int = 1, tags: Value | None = None) -> Value:
        """The tags (or `tags`) without those of the registers popped."""
        left = self.tags if tags is None else tags
        for number in range(count):
            left = left & ~self.tag(number)
        return left

    def push(
        self,
        value: Value,
        status: Value | int = 0,
        *,
        stops: int = ON_OPERANDS,
        empty: Value | None = None,
    ) -> None:
        """The last of an instruction that loads: `value` on the stack, or overflow, unless a
        register was `empty`."""
        full = self.is_full()
        status = full.select(_word(OVERFLOW), _word(status))
        if empty is not None:
            status = empty.select(_word(UNDERFLOW), status)
        tags = self.tags | self.tag(PUSHED)
        with self.cpu.when(self.conclude(status, stops=stops, moves=-1, tags=tags)):
            self.register(PUSHED).set(full.select(const(INDEFINITE, 80), value))
