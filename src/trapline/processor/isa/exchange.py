"""Exchange and compare: XCHG, XADD, CMPXCHG, CMPXCHG8B/16B.  Where bus locks are born."""

from __future__ import annotations

from trapline.processor.language import GP, Cpu, Operand, concat, instruction


@instruction("86 /r", "87 /r", "90+r", lock="always")
def xchg(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """Swap dst and src.  With a memory operand the access is locked, LOCK or not."""
    if src.in_memory:
        dst, src = src, dst
    incoming = src.get()
    src.set(dst.update(lambda old: incoming))


@instruction("0F C0 /r", "0F C1 /r", lock="allowed")
def xadd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := dst + src; src := old dst."""
    addend = src.get()
    before = dst.update(lambda old: old + addend)
    cpu.flags.after_add(before + addend, addend)
    if not cpu.form.aliased:  # XADD r,r of one register keeps the sum
        src.set(before)


@instruction("0F B0 /r", "0F B1 /r", lock="allowed")
def cmpxchg(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """If dst equals the accumulator, dst := src; else the accumulator := dst.

    In memory dst is written either way, so a compare that fails still takes the bus lock.
    A register that does not match is left alone, its upper half too.
    """
    accumulator = cpu.register("rax", dst.width)
    expected, replacement = accumulator.get(), src.get()
    if dst.in_memory:
        before = dst.update(lambda old: old.equals(expected).select(replacement, old))
    else:
        before = dst.get()
        with cpu.when(before.equals(expected)):
            dst.set(replacement)
    cpu.flags.after_sub(expected - before, before)
    with cpu.when(before.differs(expected)):
        accumulator.set(before)


def _exchange_pair(cpu: Cpu, dst: Operand, half: int) -> None:
    low, high = cpu.register("rax", half), cpu.register("rdx", half)
    expected = concat(high.get(), low.get())
    replacement = concat(cpu.register("rcx", half).get(), cpu.register("rbx", half).get())
    before = dst.update(lambda old: old.equals(expected).select(replacement, old))
    cpu.flags.put(zf=before.equals(expected))
    with cpu.when(before.differs(expected)):
        low.set(before.low(half))
        high.set(before.bits(half, half))


@instruction("0F C7 /1", lock="allowed")
def cmpxchg8b(cpu: Cpu, dst: Operand) -> None:
    """Compare EDX:EAX with 8 bytes; exchange with ECX:EBX or load."""
    _exchange_pair(cpu, dst, 32)


@instruction("REX.W 0F C7 /1", lock="allowed")
def cmpxchg16b(cpu: Cpu, dst: Operand) -> None:
    """As CMPXCHG8B with 16 bytes, which must be aligned: so it can never split."""
    linear = cpu.linear_address(dst)
    cpu.fault(linear.low(4).differs(0), GP, 0)
    _exchange_pair(cpu, dst, 64)
