"""CVT: between integers, single and double precision, in XMM, MMX and general registers."""

from __future__ import annotations

from collections.abc import Callable

from trapline.processor.isa.mmx import enter_mmx
from trapline.processor.isa.sse_shared import fetch, put_alone, put_low
from trapline.processor.language import Cpu, Operand, Value, instruction

Description = Callable[[Cpu, Operand, Operand], None]
_SIZES = {"s": 32, "d": 64, "32": 32, "64": 64}


def _converted(
    cpu: Cpu, source: str, target: str, truncate: bool, value: Value, to_mmx: bool = False
) -> Value:
    width = value.width // _SIZES[source] * _SIZES[target]
    of = (source, target, truncate, to_mmx)
    return cpu.primitive("float_convert", value, widths=(width,), unit="sse", of=of)[0]


def _packed(source: str, target: str, width: int, truncate: bool = False) -> Description:
    def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """`width` bits of lanes; what they do not fill is cleared."""
        to_mmx = dst.kind == "mmx"
        if to_mmx:
            enter_mmx(cpu)
        result = _converted(cpu, source, target, truncate, fetch(cpu, src, width), to_mmx)
        put_alone(cpu, dst, result)

    return description


for _name, _opcode, _description in (
    ("cvtdq2ps", "NP 0F 5B /r", _packed("32", "s", 128)),
    ("cvtdq2pd", "F3 0F E6 /r", _packed("32", "d", 64)),
    ("cvtps2dq", "66 0F 5B /r", _packed("s", "32", 128)),
    ("cvttps2dq", "F3 0F 5B /r", _packed("s", "32", 128, truncate=True)),
    ("cvtpd2dq", "F2 0F E6 /r", _packed("d", "32", 128)),
    ("cvttpd2dq", "66 0F E6 /r", _packed("d", "32", 128, truncate=True)),
    ("cvtps2pd", "NP 0F 5A /r", _packed("s", "d", 64)),
    ("cvtpd2ps", "66 0F 5A /r", _packed("d", "s", 128)),
    ("cvtps2pi", "NP 0F 2D /r", _packed("s", "32", 64)),
    ("cvttps2pi", "NP 0F 2C /r", _packed("s", "32", 64, truncate=True)),
    ("cvtpd2pi", "66 0F 2D /r", _packed("d", "32", 128)),
    ("cvttpd2pi", "66 0F 2C /r", _packed("d", "32", 128, truncate=True)),
):
    instruction(_opcode, name=_name)(_description)


def _enter_unless_memory(cpu: Cpu, src: Operand) -> None:
    """From memory the x87 state is left alone (SDM 2A, CVTPI2PD; CVTPI2PS does the same)."""
    if not src.in_memory:
        enter_mmx(cpu)


@instruction("NP 0F 2A /r")
def cvtpi2ps(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """Two integers to the low half; the high half stays."""
    _enter_unless_memory(cpu, src)
    value = fetch(cpu, src)
    put_low(cpu, dst, _converted(cpu, "32", "s", False, value, to_mmx=not src.in_memory))


@instruction("66 0F 2A /r")
def cvtpi2pd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """Two integers."""
    _enter_unless_memory(cpu, src)
    dst.set(_converted(cpu, "32", "d", False, fetch(cpu, src)))


def _to_scalar(target: str, source: str = "") -> Description:
    def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """The low lane of dst := src, which is an integer where `source` does not say."""
        kind = source or str(src.width)
        value = fetch(cpu, src, _SIZES[kind])
        put_low(cpu, dst, _converted(cpu, kind, target, False, value))

    return description


def _to_integer(source: str, truncate: bool) -> Description:
    def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """A general register := the low lane as an integer."""
        value = fetch(cpu, src, _SIZES[source])
        dst.set(_converted(cpu, source, str(dst.width), truncate, value))

    return description


for _name, _opcode, _description in (
    ("cvtsi2ss", "F3 0F 2A /r", _to_scalar("s")),
    ("cvtsi2sd", "F2 0F 2A /r", _to_scalar("d")),
    ("cvtss2sd", "F3 0F 5A /r", _to_scalar("d", "s")),
    ("cvtsd2ss", "F2 0F 5A /r", _to_scalar("s", "d")),
    ("cvtss2si", "F3 0F 2D /r", _to_integer("s", False)),
    ("cvttss2si", "F3 0F 2C /r", _to_integer("s", True)),
    ("cvtsd2si", "F2 0F 2D /r", _to_integer("d", False)),
    ("cvttsd2si", "F2 0F 2C /r", _to_integer("d", True)),
):
    instruction(_opcode, name=_name)(_description)
