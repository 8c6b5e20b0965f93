"""x87 loads, stores, exchanges and conditional moves; constants; integers and packed decimals."""

from __future__ import annotations

from collections.abc import Callable

from trapline.arch.registers import FSW_C1, FSW_IE
from trapline.processor.isa.x87_unit import (
    INDEFINITE,
    ON_STORE,
    UNDERFLOW,
    Unit,
    results,
)
from trapline.processor.language import Cpu, Operand, Value, const, instruction

Description = Callable[..., None]

_INDEFINITES = {"f32": 0xFFC00000, "f64": 0xFFF8000000000000, "bcd": 0xFFFFC000000000000000}


def _indefinite(kind: str, width: int) -> Value:
    """What an invalid operation stores: a NaN, or the integer or decimal indefinite."""
    return const(_INDEFINITES.get(kind, 1 << width - 1), width)


@instruction("D9 /0", "DD /0", "DB /5", "D9 C0+i")
def fld(cpu: Cpu, src: Operand) -> None:
    """Push a number.  It is pushed even with an unmasked denormal-operand exception."""
    unit = Unit(cpu, src if src.in_memory else None)
    value = src.get()
    if not src.in_memory:
        empty = unit.is_empty(src)
        unit.push(empty.select(const(INDEFINITE, 80), value), empty=empty)
    elif src.width == 80:
        unit.push(value)
    else:
        value, status = results(cpu, "load", value, widths=(80,), of=(f"f{src.width}",))
        unit.push(value, status, stops=FSW_IE)


@instruction("DF /0", "DB /0", "DF /5")
def fild(cpu: Cpu, src: Operand) -> None:
    """Push an integer, exactly."""
    unit = Unit(cpu, src)
    value, status = results(cpu, "load", src.get(), widths=(80,), of=(f"i{src.width}",))
    unit.push(value, status)


@instruction("DF /4")
def fbld(cpu: Cpu, src: Operand) -> None:
    """Push a packed decimal, exactly."""
    unit = Unit(cpu, src)
    value, status = results(cpu, "load", src.get(), widths=(80,), of=("bcd",))
    unit.push(value, status)


def _store_register(cpu: Cpu, dst: Operand, pops: bool) -> None:
    unit = Unit(cpu)
    empty = unit.is_empty(0)
    value = empty.select(const(INDEFINITE, 80), unit.register(0).get())
    status = empty.select(const(UNDERFLOW, 16), const(0, 16))
    tags = unit.tags | unit.tag(dst)
    tags = unit.popped(tags=tags) if pops else tags
    with cpu.when(unit.conclude(status, moves=int(pops), tags=tags)):
        dst.set(value)


def _check_write(cpu: Cpu, dst: Operand) -> None:
    """The faults of writing to memory, without changing it."""
    if dst.width != 80:
        dst.update(lambda old: old)
        return
    offset = (cpu.effective_address(dst) + 8).low(cpu.form.address_width).zero_extend(64)
    for part in (dst.narrowed(64), cpu.memory(dst.index, offset, 16)):
        part.update(lambda old: old)


def _store(cpu: Cpu, dst: Operand, kind: str, pops: bool) -> None:
    """ST(0) to memory, converted.  Without the store the access is checked all the same."""
    unit = Unit(cpu, dst)
    empty = unit.is_empty(0)
    value, status = unit.register(0).get(), const(0, 16)
    if kind != "f80":
        value, status = results(cpu, "store", value, widths=(dst.width,), of=(kind,))
    value = empty.select(
        const(INDEFINITE, 80) if kind == "f80" else _indefinite(kind, dst.width), value
    )
    status = empty.select(const(UNDERFLOW, 16), status)
    tags = unit.popped() if pops else None
    stores = unit.conclude(status, stops=ON_STORE, moves=int(pops), tags=tags)
    with cpu.when(stores):
        dst.set(value)
    with cpu.when(~stores):
        _check_write(cpu, dst)


def _fst(pops: bool) -> Description:
    def description(cpu: Cpu, dst: Operand) -> None:
        """ST(0) to memory or to a register."""
        if dst.in_memory:
            _store(cpu, dst, f"f{dst.width}", pops)
        else:
            _store_register(cpu, dst, pops)

    return description


def _fist(pops: bool, kind: str = "i") -> Description:
    def description(cpu: Cpu, dst: Operand) -> None:
        """ST(0) to memory as an integer, rounded or (kind "t") cut off."""
        _store(cpu, dst, f"{kind}{dst.width}", pops)

    return description


instruction("D9 /2", "DD /2", "DD D0+i", name="fst")(_fst(False))
instruction("D9 /3", "DD /3", "DB /7", "DD D8+i", "DF D0+i", "DF D8+i", name="fstp")(_fst(True))
instruction("DF /2", "DB /2", name="fist")(_fist(False))
instruction("DF /3", "DB /3", "DF /7", name="fistp")(_fist(True))
instruction("DF /1", "DB /1", "DD /1", name="fisttp")(_fist(True, "t"))


@instruction("DF /6")
def fbstp(cpu: Cpu, dst: Operand) -> None:
    """ST(0) to memory as a packed decimal; pop."""
    _store(cpu, dst, "bcd", True)


@instruction("D9 D8+i")
def fstpnce(cpu: Cpu, dst: Operand) -> None:
    """FSTP without a check: an empty ST(0) is popped and not stored, as measured on AMD."""
    unit = Unit(cpu)
    empty = unit.rare((unit.tags & unit.tag(0)).equals(0))
    tags = empty.select(unit.tags, unit.tags | unit.tag(dst))
    value = empty.select(dst.get(), unit.register(0).get())
    with cpu.when(unit.conclude(moves=1, tags=unit.popped(tags=tags))):
        dst.set(value)


@instruction("D9 C8+i", "DD C8+i", "DF C8+i")
def fxch(cpu: Cpu, top: Operand, other: Operand) -> None:
    """Swap ST(0) and ST(i); an empty one counts as the indefinite."""
    unit = Unit(cpu)
    nan = const(INDEFINITE, 80)
    low, high = top.get(), other.get()
    is_low_empty, is_high_empty = unit.is_empty(top), unit.is_empty(other)
    fault = is_low_empty | is_high_empty
    status = fault.select(const(UNDERFLOW, 16), const(0, 16))
    with cpu.when(unit.conclude(status, tags=unit.tags | unit.tag(top) | unit.tag(other))):
        top.set(is_high_empty.select(nan, high))
        other.set(is_low_empty.select(nan, low))


_CONDITIONS = {  # condition number (SDM 1, appendix B), opcode
    "fcmovb": (2, "DA C0+i"), "fcmove": (4, "DA C8+i"), "fcmovbe": (6, "DA D0+i"),
    "fcmovu": (10, "DA D8+i"), "fcmovnb": (3, "DB C0+i"), "fcmovne": (5, "DB C8+i"),
    "fcmovnbe": (7, "DB D0+i"), "fcmovnu": (11, "DB D8+i"),
}  # fmt: skip


def _fcmov(code: int) -> Description:
    def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
        """ST(0) := ST(i) if the condition holds.  C1 changes only with a stack underflow, which an
        empty register is whatever the condition."""
        unit = Unit(cpu)
        condition = cpu.flags.condition(code)
        fault = unit.is_empty(dst, src)
        value = fault.select(const(INDEFINITE, 80), condition.select(src.get(), dst.get()))
        status = fault.select(const(UNDERFLOW, 16), const(0, 16))
        cleared = fault.select(const(FSW_C1, 16), const(0, 16))
        tags = unit.tags | unit.tag(dst)
        with cpu.when(unit.conclude(status, conditions=cleared, tags=tags)):
            dst.set(value)

    return description


for _name, (_code, _opcode) in _CONDITIONS.items():
    instruction(_opcode, name=_name)(_fcmov(_code))

_ONE = 0x3FFF8000000000000000
_CONSTANTS = {
    "fldl2t": "D9 E9", "fldl2e": "D9 EA", "fldpi": "D9 EB", "fldlg2": "D9 EC", "fldln2": "D9 ED",
}  # fmt: skip


def _constant(name: str) -> Description:
    def description(cpu: Cpu) -> None:
        """Push a constant, rounded as the control word says."""
        unit = Unit(cpu)
        value, status = results(cpu, "constant", widths=(80,), of=(name,))
        unit.push(value, status)

    return description


for _name, _opcode in _CONSTANTS.items():
    instruction(_opcode, name=_name)(_constant(_name))


@instruction("D9 E8")
def fld1(cpu: Cpu) -> None:
    """Push 1."""
    Unit(cpu).push(const(_ONE, 80))


@instruction("D9 EE")
def fldz(cpu: Cpu) -> None:
    """Push 0."""
    Unit(cpu).push(const(0, 80))
