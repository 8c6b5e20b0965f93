"""Single bits and bit counts: BT, BTS, BTR, BTC, BSF, BSR, POPCNT, SETcc, CRC32."""

from __future__ import annotations

from collections.abc import Callable

from trapline.processor.isa.conditions import CONDITIONS
from trapline.processor.language import Cpu, Operand, Value, const, instruction
from trapline.processor.language.registry import Description


def _addressed(cpu: Cpu, base: Operand, index: Operand) -> tuple[Operand, Value]:
    """The operand that holds the bit, and the bit as a mask.

    A register index into memory reaches beyond the operand: it counts bits, signed, from the
    operand's first (SDM vol. 1, "Bit String").  An immediate stays within.
    """
    width = base.width
    position = index.get()
    mask = const(1, width) << (position.low(8).zero_extend(width) & width - 1)
    if not base.in_memory or index.kind == "imm":
        return base, mask
    bytes_away = position.ashr(width.bit_length() - 1).sign_extend(64) * (width // 8)
    offset = (cpu.effective_address(base) + bytes_away).low(cpu.form.address_width)
    return cpu.memory(base.index, offset.zero_extend(64), width), mask


def _change_bit(
    cpu: Cpu, base: Operand, index: Operand, change: Callable[[Value, Value], Value]
) -> None:
    """CF := the bit, which is then changed.  The flags the manual leaves undefined stay."""
    holder, mask = _addressed(cpu, base, index)
    before = holder.update(lambda old: change(old, mask))
    cpu.flags.put(cf=(before & mask).differs(0))


@instruction("0F A3 /r", "0F BA /4")
def bt(cpu: Cpu, base: Operand, index: Operand) -> None:
    """CF := the bit."""
    holder, mask = _addressed(cpu, base, index)
    cpu.flags.put(cf=(holder.get() & mask).differs(0))


@instruction("0F AB /r", "0F BA /5", lock="allowed")
def bts(cpu: Cpu, base: Operand, index: Operand) -> None:
    """CF := the bit; the bit := 1."""
    _change_bit(cpu, base, index, lambda old, mask: old | mask)


@instruction("0F B3 /r", "0F BA /6", lock="allowed")
def btr(cpu: Cpu, base: Operand, index: Operand) -> None:
    """CF := the bit; the bit := 0."""
    _change_bit(cpu, base, index, lambda old, mask: old & ~mask)


@instruction("0F BB /r", "0F BA /7", lock="allowed")
def btc(cpu: Cpu, base: Operand, index: Operand) -> None:
    """CF := the bit; the bit changes."""
    _change_bit(cpu, base, index, lambda old, mask: old ^ mask)


def _scan(cpu: Cpu, dst: Operand, source: Value, position: Value) -> None:
    """dst := position unless the source is 0, which ZF tells.

    Of a source of 0 the manual leaves the destination undefined; processors leave all 64 bits of
    it alone.  The other flags are undefined; here they tell of the source.
    """
    with cpu.when(source.differs(0)):
        dst.set(position)
    cpu.flags.after_logic(source)


def _scan_forward(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := the number of the lowest bit that is 1.

    TZCNT runs as this too: it is BSF with a prefix where CPUID does not show BMI1.
    """
    source = src.get()
    _scan(cpu, dst, source, source.unary("ctz"))


def _scan_reverse(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := the number of the highest bit that is 1.

    LZCNT runs as this too: it is BSR with a prefix where CPUID does not show LZCNT.
    """
    source = src.get()
    _scan(cpu, dst, source, const(src.width - 1, src.width) - source.unary("clz"))


instruction("0F BC /r", name="bsf")(_scan_forward)
instruction("F3 0F BC /r", name="tzcnt")(_scan_forward)
instruction("0F BD /r", name="bsr")(_scan_reverse)
instruction("F3 0F BD /r", name="lzcnt")(_scan_reverse)


@instruction("F3 0F B8 /r")
def popcnt(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := how many bits of src are 1; ZF tells whether none is, all other flags become 0."""
    source, clear = src.get(), const(0, 1)
    dst.set(source.unary("popcnt"))
    cpu.flags.put(cf=clear, pf=clear, af=clear, zf=source.equals(0), sf=clear, of=clear)


def _set_condition(code: int) -> Description:
    def setcc(cpu: Cpu, dst: Operand) -> None:
        """dst := 1 if the condition holds, else 0."""
        dst.set(cpu.flags.condition(code).zero_extend(8))

    return setcc


for _code, _condition in enumerate(CONDITIONS):
    instruction(f"0F 9{_code:X}", name=f"set{_condition}")(_set_condition(_code))


_CASTAGNOLI = 0x82F63B78  # the CRC-32C polynomial, reflected


def _remainders(width: int) -> list[int]:
    """What each bit of a message of `width` bits adds to its CRC; the CRC is their sum."""
    remainders = []
    for position in range(width):
        register = 1 << position
        for _ in range(width):
            register = register >> 1 ^ (_CASTAGNOLI if register & 1 else 0)
        remainders.append(register)
    return remainders


_REMAINDERS = {width: _remainders(width) for width in (8, 16, 32, 64)}


@instruction("F2 0F 38 F0 /r", "F2 0F 38 F1 /r")
def crc32(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """dst := the CRC-32C of dst followed by src."""
    width = src.width
    before = dst.get().low(32)
    message = src.get() ^ (before.low(width) if width < 32 else before.zero_extend(width))
    result = before >> width if width < 32 else const(0, 32)
    for position, remainder in enumerate(_REMAINDERS[width]):
        result = result ^ message.bit(position).select(const(remainder, 32), const(0, 32))
    dst.set(result.zero_extend(dst.width))
