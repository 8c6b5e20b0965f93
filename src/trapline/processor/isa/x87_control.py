"""x87 control: the control and status words, the environment, saving all, waiting, the stack top.

Of these only FINCSTP, FDECSTP, FFREE and FFREEP are remembered by the instruction pointer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trapline.arch.registers import (
    FCW_INIT,
    FCW_MASKS,
    FSW_B,
    FSW_ES,
    FSW_TOP_SHIFT,
)
from trapline.processor.isa.x87_unit import Unit, ready, summarised
from trapline.processor.language import Cpu, Operand, Place, Value, concat, const, instruction

_EXCEPTIONS = 0x7F | FSW_ES | FSW_B  # the flags, the stack fault, and what sums them up
_WRITABLE, _FIXED = 0x1F3F, 0x40  # of the control word, as measured


def load_control(cpu: Cpu, word: Value) -> Value:
    """Load the control word; gives it as it then reads."""
    word = word & _WRITABLE | _FIXED
    cpu.primitive("x87_control", word, widths=(), unit="x87")
    cpu.register("fcw", 16).set(word)
    return word


@instruction("D9 /5")
def fldcw(cpu: Cpu, src: Operand) -> None:
    """Load the control word.  An exception whose flag is up and that it unmasks is pending."""
    ready(cpu)
    control = load_control(cpu, src.get())
    status = cpu.register("fsw", 16)
    status.set(summarised(status.get(), control))


@instruction("D9 /7")
def fnstcw(cpu: Cpu, dst: Operand) -> None:
    """Store the control word."""
    ready(cpu, waits=False)
    dst.set(cpu.register("fcw", 16).get())


@instruction("DD /7", "DF E0")
def fnstsw(cpu: Cpu, dst: Operand) -> None:
    """Store the status word in memory or in AX."""
    ready(cpu, waits=False)
    dst.set(cpu.register("fsw", 16).get())


@instruction("DB E2")
def fnclex(cpu: Cpu) -> None:
    """Clear the exceptions."""
    ready(cpu, waits=False)
    status = cpu.register("fsw", 16)
    status.set(status.get() & ~_EXCEPTIONS)


def _initialise(cpu: Cpu) -> None:
    load_control(cpu, const(FCW_INIT, 16))
    for name in ("fsw", "ftw", "fop", "fip", "fcs", "fdp", "fds"):
        cpu.register(name).set(const(0, 64))


@instruction("DB E3")
def fninit(cpu: Cpu) -> None:
    """All but the registers themselves as after FINIT."""
    ready(cpu, waits=False)
    _initialise(cpu)


def _nothing(cpu: Cpu) -> None:
    """FNOP and WAIT: only what is pending is raised."""
    ready(cpu)


instruction("D9 D0", name="fnop")(_nothing)


@instruction("9B")
def wait(cpu: Cpu) -> None:
    """Raise what is pending; #NM needs CR0.MP as well."""
    cpu.primitive("x87_wait", widths=(), unit="x87")


def _ignored(cpu: Cpu) -> None:
    """Of the 8087 and 287; does nothing since the 387."""
    ready(cpu, waits=False)


instruction("DB E0", name="fneni")(_ignored)
instruction("DB E1", name="fndisi")(_ignored)
instruction("DB E4", name="fnsetpm")(_ignored)


def _turn(step: int) -> Callable[[Cpu], None]:
    def description(cpu: Cpu) -> None:
        """TOP moves; nothing is pushed or popped."""
        Unit(cpu).conclude(moves=step)

    return description


instruction("D9 F6", name="fdecstp")(_turn(-1))
instruction("D9 F7", name="fincstp")(_turn(1))


@instruction("DD C0+i")
def ffree(cpu: Cpu, register: Operand) -> None:
    """ST(i) becomes empty."""
    unit = Unit(cpu)
    unit.conclude(tags=unit.tags & ~unit.tag(register))


@instruction("DF C0+i")
def ffreep(cpu: Cpu, register: Operand) -> None:
    """ST(i) becomes empty; pop.  In no manual, but every processor has it."""
    unit = Unit(cpu)
    unit.conclude(moves=1, tags=unit.popped(tags=unit.tags & ~unit.tag(register)))


# The environment (SDM 1, figures "... x87 FPU State Image in Memory").


def _full_tags(cpu: Cpu) -> Value:
    """Two bits a register: 0 a number, 1 zero, 2 anything else, 3 empty."""
    used = cpu.register("ftw", 8).get()
    word = const(0, 16)
    for number in range(8):
        value = cpu.read(Place("x87", 80, index=number))
        exponent = value.bits(64, 15)
        odd = exponent.equals(0) | exponent.equals(0x7FFF) | (value.bit(63) ^ 1)
        tag = odd.select(const(2, 16), const(0, 16))
        tag = (value.low(79)).equals(0).select(const(1, 16), tag)
        tag = used.bit(number).select(tag, const(3, 16))
        word = word | tag << 2 * number
    return word


def _used(tags: Value) -> Value:
    """The tags as the state keeps them."""
    used = const(0, 8)
    for number in range(8):
        is_used = tags.bits(2 * number, 2).differs(3)
        used = used | is_used.zero_extend(8) << number
    return used


def _is_real(cpu: Cpu) -> Value:
    """Real or virtual-8086 mode, where the pointers are linear addresses."""
    if cpu.form.bitness == 64:
        return const(0, 1)
    is_virtual = cpu.register("system_flags", 32).get().bit(17)
    return cpu.register("cr0", 32).get().bit(0) ^ 1 | is_virtual


def _joined(parts: Sequence[Value]) -> Value:
    """The first part lowest."""
    whole = parts[0]
    for part in parts[1:]:
        whole = concat(part, whole)
    return whole


def _pointers(cpu: Cpu, wide: bool) -> Value:
    """The last four fields of the environment."""
    fip, fdp = cpu.register("fip").get(), cpu.register("fdp").get()
    opcode = cpu.register("fop", 16).get() & 0x7FF
    zero, ones = const(0, 16), const(0xFFFF, 16)
    real = _is_real(cpu)
    plain: tuple[Value, ...]
    linear: tuple[Value, ...]
    if wide:
        plain = (fip.low(32), zero, opcode, fdp.low(32), zero, ones)
        old_ip = fip.bits(16, 16).zero_extend(32) << 12
        old_dp = fdp.bits(16, 16).zero_extend(32) << 12
        linear = (
            fip.low(16), ones, old_ip | opcode.zero_extend(32), fdp.low(16), ones, old_dp,
        )  # fmt: skip
    else:
        plain = (fip.low(16), zero, fdp.low(16), zero)
        old_ip, old_dp = fip.bits(16, 4).zero_extend(16), fdp.bits(16, 4).zero_extend(16)
        linear = (fip.low(16), old_ip << 12 | opcode, fdp.low(16), old_dp << 12)
    return real.select(_joined(linear), _joined(plain))


def _environment(cpu: Cpu, wide: bool) -> Value:
    """What FNSTENV stores: 28 bytes, or 14 with a 16-bit operand size."""
    words = [cpu.register("fcw", 16).get(), cpu.register("fsw", 16).get(), _full_tags(cpu)]
    if wide:
        words = [concat(const(0xFFFF, 16), word) for word in words]
    return _joined((*words, _pointers(cpu, wide)))


def _load_environment(cpu: Cpu, image: Value, wide: bool) -> None:
    size = 32 if wide else 16
    control = load_control(cpu, image.low(16))
    cpu.register("fsw", 16).set(summarised(image.bits(size, 16), control))
    cpu.register("ftw", 8).set(_used(image.bits(2 * size, 16)))
    fields = [image.bits((3 + n) * size, size).zero_extend(64) for n in range(4)]
    fip, code, fdp, data = fields
    real = _is_real(cpu)
    if wide:
        opcode, old_ip, old_dp = code.bits(16, 11), code.bits(12, 16), data.bits(12, 16)
        opcode = real.select(code.low(11), opcode)
    else:
        kept = cpu.register("fop", 16).get().low(11)
        opcode, old_ip, old_dp = code.low(11), code.bits(12, 4), data.bits(12, 4)
        opcode = real.select(opcode, kept)
    linear_ip = old_ip.zero_extend(64) << 16 | fip.low(16).zero_extend(64)
    linear_dp = old_dp.zero_extend(64) << 16 | fdp.low(16).zero_extend(64)
    cpu.register("fip").set(real.select(linear_ip, fip))
    cpu.register("fdp").set(real.select(linear_dp, fdp))
    cpu.register("fop").set(opcode.zero_extend(64))
    cpu.register("fcs").set(const(0, 64))
    cpu.register("fds").set(const(0, 64))


def _is_wide(operand: Operand) -> bool:
    return operand.width in (8 * 28, 8 * 108)


def _edges(cpu: Cpu, image: Operand) -> tuple[Operand, Operand]:
    """What is accessed before all else (measured on AMD): the first field, which must be aligned
    where alignment is checked, and the last byte."""
    last = cpu.effective_address(image) + (image.width // 8 - 1)
    last = last.low(cpu.form.address_width).zero_extend(64)
    return image.narrowed(32 if _is_wide(image) else 16), cpu.memory(image.index, last, 8)


def _fetch(cpu: Cpu, image: Operand) -> Value:
    for edge in _edges(cpu, image):
        edge.get()
    return image.get()


def _deposit(cpu: Cpu, image: Operand, value: Value) -> None:
    for edge in _edges(cpu, image):
        edge.update(lambda old: old)
    image.set(value)


@instruction("D9 /6")
def fnstenv(cpu: Cpu, dst: Operand) -> None:
    """Store the environment, then mask all exceptions."""
    ready(cpu, waits=False)
    _deposit(cpu, dst, _environment(cpu, _is_wide(dst)))
    control, status = cpu.register("fcw", 16), cpu.register("fsw", 16)
    control.set(control.get() | FCW_MASKS)
    status.set(status.get() & ~(FSW_ES | FSW_B))


@instruction("D9 /4")
def fldenv(cpu: Cpu, src: Operand) -> None:
    """Load the environment."""
    ready(cpu)
    _load_environment(cpu, _fetch(cpu, src), _is_wide(src))


@instruction("DD /6")
def fnsave(cpu: Cpu, dst: Operand) -> None:
    """Store the environment and the registers, ST(0) first; then initialise."""
    ready(cpu, waits=False)
    # One access, so that a fault leaves memory alone too.
    cpu.primitive("x87_long_access", widths=())
    stack = [cpu.read(Place("st", 80, index=number)) for number in range(8)]
    _deposit(cpu, dst, _joined((_environment(cpu, _is_wide(dst)), *stack)))
    _initialise(cpu)


@instruction("DD /4")
def frstor(cpu: Cpu, src: Operand) -> None:
    """Load what FNSAVE stored."""
    ready(cpu)
    cpu.primitive("x87_long_access", widths=())
    image, wide = _fetch(cpu, src), _is_wide(src)
    _load_environment(cpu, image.low(224 if wide else 112), wide)
    top = image.bits(32 if wide else 16, 16).bits(FSW_TOP_SHIFT, 3)
    for number in range(8):
        # R0 is ST(8 - TOP): turn the stack by TOP registers.
        place = Place("x87", 80, index=number)
        turned = (const(number, 3) - top).zero_extend(10)
        base = 224 if wide else 112
        offset = turned * 80 + base
        cpu.write(place, (image >> offset.zero_extend(image.width)).low(80))
