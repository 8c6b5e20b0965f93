"""PUSH and POP in all their forms, ENTER and LEAVE.

Loading a segment register with POP is microcode, and so is what follows when POPF changes TF, IF
or AC; the virtual-8086 mode extensions (CR4.VME) are not known here.
"""

from __future__ import annotations

from trapline.processor.language import GP, Cpu, Operand, Value, const, instruction

_CARRIED = {"cf": 0, "pf": 2, "af": 4, "zf": 6, "sf": 7, "of": 11}  # positions in RFLAGS
_TF, _IF, _DF, _IOPL, _NT = 1 << 8, 1 << 9, 1 << 10, 3 << 12, 1 << 14
_RF, _VM, _AC, _ID = 1 << 16, 1 << 17, 1 << 18, 1 << 21


@instruction("50+r", "68", "6A", "FF /6", "06", "0E", "16", "1E", "0F A0", "0F A8")
def push(cpu: Cpu, src: Operand) -> None:
    """Put src on the stack: RSP as it was before, a selector zero-extended."""
    value = src.get()
    cpu.push(value.zero_extend(cpu.form.operand_width) if src.kind == "sreg" else value)


@instruction("58+r", "8F /0", "07", "17", "1F", "0F A1", "0F A9")
def pop(cpu: Cpu, dst: Operand) -> None:
    """Take dst off the stack; POP RSP leaves what was popped in RSP."""
    if dst.kind == "sreg":
        cpu.microcode("pop_segment")
    else:
        dst.set(cpu.pop(dst.width))


def _push_all(cpu: Cpu, width: int) -> None:
    names = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
    for value in [cpu.register(name, width).get() for name in names]:
        cpu.push(value)


def _pop_all(cpu: Cpu, width: int) -> None:
    for name in ("rdi", "rsi", "rbp", "", "rbx", "rdx", "rcx", "rax"):
        value = cpu.pop(width)
        if name:
            cpu.register(name, width).set(value)


@instruction("60")
def pusha(cpu: Cpu) -> None:
    """Push AX, CX, DX, BX, SP as it was, BP, SI, DI."""
    _push_all(cpu, 16)


@instruction("60")
def pushad(cpu: Cpu) -> None:
    """Push EAX, ECX, EDX, EBX, ESP as it was, EBP, ESI, EDI."""
    _push_all(cpu, 32)


@instruction("61")
def popa(cpu: Cpu) -> None:
    """Pop what PUSHA pushed, but for SP."""
    _pop_all(cpu, 16)


@instruction("61")
def popad(cpu: Cpu) -> None:
    """Pop what PUSHAD pushed, but for ESP."""
    _pop_all(cpu, 32)


def _needs_iopl_3_in_virtual_8086(cpu: Cpu, word: Value) -> None:
    if cpu.form.bitness == 16:
        is_virtual = (word & _VM).differs(0)
        cpu.fault(is_virtual & (word & _IOPL).differs(_IOPL), GP, 0)


def _push_flags(cpu: Cpu, width: int) -> None:
    word = cpu.register("system_flags").get()
    _needs_iopl_3_in_virtual_8086(cpu, word)
    image = word & ~(_VM | _RF)
    for name, position in _CARRIED.items():
        image = image | getattr(cpu.flags, name).zero_extend(64) << position
    cpu.push(image.low(width))


@instruction("9C")
def pushf(cpu: Cpu) -> None:
    """Push FLAGS."""
    _push_flags(cpu, 16)


@instruction("9C")
def pushfd(cpu: Cpu) -> None:
    """Push EFLAGS, with VM and RF as 0."""
    _push_flags(cpu, 32)


@instruction("9C")
def pushfq(cpu: Cpu) -> None:
    """Push RFLAGS, with VM and RF as 0."""
    _push_flags(cpu, 64)


def _pop_flags(cpu: Cpu, width: int) -> None:
    """SDM 2B, POPF, table "Effect of POPF/POPFD on the EFLAGS Register"."""
    system_flags = cpu.register("system_flags")
    before = system_flags.get()
    _needs_iopl_3_in_virtual_8086(cpu, before)
    image = cpu.pop(width).zero_extend(64)
    cpl = cpu.register("cpl").get()
    iopl = before >> 12 & 3
    mask = const(_TF | _DF | _NT | (0 if width == 16 else _AC | _ID), 64)
    mask = mask | cpl.equals(0).select(const(_IOPL, 64), const(0, 64))
    mask = mask | iopl.below(cpl).select(const(0, 64), const(_IF, 64))
    kept = ~mask if width == 16 else ~(mask | _RF)
    after = before & kept | image & mask
    system_flags.set(after)
    cpu.flags.put(**{name: image.bit(position) for name, position in _CARRIED.items()})
    with cpu.when(((before ^ after) & (_TF | _IF | _AC)).differs(0)):
        cpu.microcode("system_flags_changed", before)


@instruction("9D")
def popf(cpu: Cpu) -> None:
    """Pop FLAGS."""
    _pop_flags(cpu, 16)


@instruction("9D")
def popfd(cpu: Cpu) -> None:
    """Pop EFLAGS; RF becomes 0."""
    _pop_flags(cpu, 32)


@instruction("9D")
def popfq(cpu: Cpu) -> None:
    """Pop RFLAGS; RF becomes 0."""
    _pop_flags(cpu, 64)


@instruction("C8 iw ib")
def enter(cpu: Cpu, size: Operand, nesting: Operand) -> None:
    """Make a stack frame of `size` bytes that knows the `nesting` frames around it.

    The operand's size says how much of RSP becomes the frame pointer (SDM 2A, ENTER: FrameTemp),
    the stack's only what is addressed.  Processors also check that the new top of the stack may
    be written; that is not done here.
    """
    width, stack, level = cpu.form.operand_width, cpu.form.stack_width, cpu.form.immediate or 0
    step = width // 8
    outer = cpu.register("rbp", stack).get()
    base = cpu.register("rbp", width)
    cpu.push(base.get())
    frame = cpu.register("rsp", width).get()
    for depth in range(1, level):
        link = cpu.memory("ss", (outer - step * depth).zero_extend(64), width)
        cpu.push(link.get())
    if level:
        cpu.push(frame)
    base.set(frame)
    pointer = cpu.stack_pointer()
    pointer.set(pointer.get() - size.get().zero_extend(stack))


@instruction("C9")
def leave(cpu: Cpu) -> None:
    """Undo ENTER: RSP := RBP, then pop RBP."""
    width = cpu.form.operand_width
    cpu.stack_pointer().set(cpu.register("rbp", cpu.form.stack_width).get())
    cpu.register("rbp", width).set(cpu.pop(width))
