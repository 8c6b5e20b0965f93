"""Floating-point arithmetic and comparison on vectors and scalars."""

from __future__ import annotations

from collections.abc import Callable

from trapline.processor.isa.sse_shared import arithmetic, fetch, float_compare
from trapline.processor.language import Cpu, Operand, const, instruction

_PREFIXES = {"ps": "NP", "pd": "66", "ss": "F3", "sd": "F2"}
_WIDTHS = {"ps": 128, "pd": 128, "ss": 32, "sd": 64}
Description = Callable[..., None]
Shape = Callable[[str, str], Description]


def _two(operation: str, kind: str) -> Description:
    def description(cpu: Cpu, dst: Operand, src: Operand, *immediate: Operand) -> None:
        """dst := dst op src; a scalar leaves the rest of dst."""
        right = fetch(cpu, src, _WIDTHS[kind])
        chosen = cpu.form.immediate or 0
        dst.set(arithmetic(cpu, operation, kind, dst.get(), right, immediate=chosen))

    return description


def _one(operation: str, kind: str) -> Description:
    def description(cpu: Cpu, dst: Operand, src: Operand, *immediate: Operand) -> None:
        """dst := op src; a scalar leaves the rest of dst."""
        args = [fetch(cpu, src, _WIDTHS[kind])]
        if kind[0] == "s":
            args.insert(0, dst.get())
        chosen = (cpu.form.immediate or 0) & 15
        dst.set(arithmetic(cpu, operation, kind, *args, immediate=chosen))

    return description


def _register(operation: str, opcode: str, kinds: tuple[str, ...], shape: Shape) -> None:
    for kind in kinds:
        instruction(f"{_PREFIXES[kind]} {opcode}", name=operation + kind)(shape(operation, kind))


_ALL, _SINGLE = ("ps", "pd", "ss", "sd"), ("ps", "ss")
_register("add", "0F 58 /r", _ALL, _two)
_register("sub", "0F 5C /r", _ALL, _two)
_register("mul", "0F 59 /r", _ALL, _two)
_register("div", "0F 5E /r", _ALL, _two)
_register("min", "0F 5D /r", _ALL, _two)
_register("max", "0F 5F /r", _ALL, _two)
_register("sqrt", "0F 51 /r", _ALL, _one)
_register("rcp", "0F 53 /r", _SINGLE, _one)
_register("rsqrt", "0F 52 /r", _SINGLE, _one)

for _name, _opcode, _operation, _kind, _shape in (
    ("addsubps", "F2 0F D0 /r", "addsub", "ps", _two),
    ("addsubpd", "66 0F D0 /r", "addsub", "pd", _two),
    ("haddps", "F2 0F 7C /r", "hadd", "ps", _two),
    ("haddpd", "66 0F 7C /r", "hadd", "pd", _two),
    ("hsubps", "F2 0F 7D /r", "hsub", "ps", _two),
    ("hsubpd", "66 0F 7D /r", "hsub", "pd", _two),
    ("dpps", "66 0F 3A 40 /r ib", "dp", "ps", _two),
    ("dppd", "66 0F 3A 41 /r ib", "dp", "pd", _two),
    ("roundps", "66 0F 3A 08 /r ib", "round", "ps", _one),
    ("roundpd", "66 0F 3A 09 /r ib", "round", "pd", _one),
    ("roundss", "66 0F 3A 0A /r ib", "round", "ss", _one),
    ("roundsd", "66 0F 3A 0B /r ib", "round", "sd", _one),
):
    instruction(_opcode, name=_name)(_shape(_operation, _kind))


def _compare(kind: str) -> Description:
    def description(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
        """All ones or zeros in each lane, by predicate; the processor looks at three bits of it."""
        float_compare(cpu, dst, src, kind, _WIDTHS[kind])

    return description


instruction("NP 0F C2 /r ib", name="cmpps")(_compare("ps"))
instruction("66 0F C2 /r ib", name="cmppd")(_compare("pd"))
instruction("F3 0F C2 /r ib", name="cmpss")(_compare("ss"))


def _order(operation: str, kind: str) -> Description:
    def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """ZF, PF and CF as after an unsigned comparison; all three if unordered."""
        right = fetch(cpu, src, _WIDTHS[kind])
        left = dst.narrowed(_WIDTHS[kind]).get()
        zf, pf, cf = cpu.primitive(
            "float_order", left, right, widths=(1, 1, 1), unit="sse", of=(operation, kind)
        )
        off = const(0, 1)
        cpu.flags.put(zf=zf, pf=pf, cf=cf, of=off, sf=off, af=off)

    return description


instruction("NP 0F 2F /r", name="comiss")(_order("comi", "ss"))
instruction("66 0F 2F /r", name="comisd")(_order("comi", "sd"))
instruction("NP 0F 2E /r", name="ucomiss")(_order("ucomi", "ss"))
instruction("66 0F 2E /r", name="ucomisd")(_order("ucomi", "sd"))
