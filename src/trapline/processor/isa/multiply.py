"""MUL, IMUL, DIV and IDIV."""

from __future__ import annotations

from trapline.processor.language import DE, Cpu, Operand, Value, concat, const, divide, instruction


def _put_product(cpu: Cpu, low: Value, overflow: Value) -> None:
    """CF and OF say whether the upper half matters.

    The manual leaves SF, ZF, AF and PF undefined.  Zen keeps their old values; we take them from
    the low half, AF 0, as Bochs does: then no older flag has to be computed.
    """
    cpu.flags.put_result(low, cf=overflow, of=overflow, af=const(0, 1))


def _write_pair(cpu: Cpu, high: Value, low: Value) -> None:
    """DX:AX and the like; for bytes AH:AL."""
    if low.width == 8:
        cpu.register("rax", 16).set(concat(high, low))
    else:
        cpu.register("rdx", high.width).set(high)
        cpu.register("rax", low.width).set(low)


@instruction("F6 /4", "F7 /4")
def mul(cpu: Cpu, src: Operand) -> None:
    """RDX:RAX := RAX * src, unsigned."""
    width = src.width
    left = cpu.register("rax", width).get().zero_extend(2 * width)
    product = left * src.get().zero_extend(2 * width)
    high, low = product.bits(width, width), product.low(width)
    _put_product(cpu, low, high.differs(0))
    _write_pair(cpu, high, low)


@instruction("F6 /5", "F7 /5", "0F AF /r", "69 /r", "6B /r")
def imul(cpu: Cpu, *operands: Operand) -> None:
    """Signed product: of RAX and the operand into RDX:RAX, or of the last two into the first."""
    width = operands[0].width
    if len(operands) == 1:
        left, right = cpu.register("rax", width).get(), operands[0].get()
    else:
        left, right = operands[-2].get(), operands[-1].get()
    product = left.sign_extend(2 * width) * right.sign_extend(2 * width)
    low = product.low(width)
    _put_product(cpu, low, product.differs(low.sign_extend(2 * width)))
    if len(operands) == 1:
        _write_pair(cpu, product.bits(width, width), low)
    else:
        operands[0].set(low)


def _dividend(cpu: Cpu, width: int) -> tuple[Value, Value]:
    """High and low half: DX:AX and the like; for bytes AH:AL."""
    if width == 8:
        pair = cpu.register("rax", 16).get()
        return pair.bits(8, 8), pair.low(8)
    return cpu.register("rdx", width).get(), cpu.register("rax", width).get()


@instruction("F6 /6", "F7 /6")
def div(cpu: Cpu, src: Operand) -> None:
    """RAX, RDX := quotient and remainder of RDX:RAX by src, unsigned.

    #DE if the quotient does not fit, which a divisor of 0 never lets it.  All six flags are
    undefined in the manual; here they keep their values.
    """
    divisor = src.get()
    high, low = _dividend(cpu, src.width)
    cpu.fault(high.below(divisor) ^ 1, DE)
    quotient = divide("udiv", high, low, divisor)
    remainder = divide("urem", high, low, divisor)
    _write_pair(cpu, remainder, quotient)


@instruction("F6 /7", "F7 /7")
def idiv(cpu: Cpu, src: Operand) -> None:
    """RAX, RDX := quotient (towards 0) and remainder of RDX:RAX by src, signed.

    Divided as magnitudes; the remainder has the dividend's sign.  The flags are as after DIV.
    """
    width = src.width
    divisor = src.get()
    dividend = concat(*_dividend(cpu, width))
    is_negative = dividend.sign
    magnitude = is_negative.select(-dividend, dividend)
    by = divisor.sign.select(-divisor, divisor)
    high, low = magnitude.bits(width, width), magnitude.low(width)
    cpu.fault(high.below(by) ^ 1, DE)
    quotient = divide("udiv", high, low, by)
    remainder = divide("urem", high, low, by)
    signs_differ = is_negative ^ divisor.sign
    greatest = const((1 << width - 1) - 1, width) + signs_differ.zero_extend(width)
    cpu.fault(greatest.below(quotient), DE)
    _write_pair(
        cpu,
        is_negative.select(-remainder, remainder),
        signs_differ.select(-quotient, quotient),
    )
