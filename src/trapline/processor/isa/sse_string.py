"""PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM: comparison of strings in registers."""

from __future__ import annotations

from collections.abc import Callable

from trapline.processor.isa.sse_shared import fetch
from trapline.processor.language import Cpu, Operand, Value, const, instruction


def _length(cpu: Cpu, name: str, width: int) -> Value:
    """The magnitude of an explicit length, at most what the register holds."""
    given = cpu.register(name, width).get()
    magnitude = given.sign.select(-given, given)
    most = 8 if (cpu.form.immediate or 0) & 1 else 16
    return magnitude.below(most).select(magnitude, const(most, width)).low(32)


def _compare(
    wants_index: bool, lengths: int = 0
) -> Callable[[Cpu, Operand, Operand, Operand], None]:
    def description(cpu: Cpu, first: Operand, second: Operand, immediate: Operand) -> None:
        """`lengths`: the width of those in RAX and RDX; 0: the strings end with a zero."""
        right = fetch(cpu, second, 128, aligned=False)
        args = [first.get(), right]
        if lengths:
            args += [_length(cpu, name, lengths) for name in ("rax", "rdx")]
        of = ((cpu.form.immediate or 0) & 0x7F, wants_index)
        widths = (32 if wants_index else 128, 1, 1, 1, 1)
        result, cf, zf, sf, of_ = cpu.primitive("string_compare", *args, widths=widths, of=of)
        cpu.flags.put(cf=cf, zf=zf, sf=sf, of=of_, af=const(0, 1), pf=const(0, 1))
        if wants_index:
            cpu.register("rcx", 32).set(result)
        else:
            cpu.xmm(0).set(result)

    return description


instruction("66 0F 3A 60 /r ib", name="pcmpestrm")(_compare(False, 32))
instruction("66 0F 3A 61 /r ib", name="pcmpestri")(_compare(True, 32))
instruction("66 REX.W 0F 3A 60 /r ib", name="pcmpestrm64")(_compare(False, 64))
instruction("66 REX.W 0F 3A 61 /r ib", name="pcmpestri64")(_compare(True, 64))
instruction("66 0F 3A 62 /r ib", name="pcmpistrm")(_compare(False))
instruction("66 0F 3A 63 /r ib", name="pcmpistri")(_compare(True))
