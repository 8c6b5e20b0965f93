"""LDMXCSR and STMXCSR; the whole x87 and SSE state to memory and back: FXSAVE, XSAVE.

Only components 0 (x87) and 1 (SSE) of the XSAVE area exist here, in its standard form.
"""

from __future__ import annotations

from collections.abc import Callable

from trapline.arch.registers import FCW_INIT, FSW_TOP_SHIFT, MXCSR_MASK
from trapline.processor.isa.sse_shared import require_alignment
from trapline.processor.isa.x87_control import load_control
from trapline.processor.isa.x87_unit import summarised
from trapline.processor.language import (
    GP,
    UD,
    Cpu,
    Operand,
    Place,
    Value,
    concat,
    const,
    instruction,
)

_MXCSR_RESERVED = ~MXCSR_MASK & 0xFFFFFFFF
_X87, _SSE = 0, 1  # components, by their bit in XCR0
# Where things are in the area (SDM 1, "x87 State", "SSE State").
_FIP, _FDP, _MXCSR, _STACK, _VECTORS, _HEADER = 8, 16, 24, 32, 160, 512


def _read_mxcsr(cpu: Cpu) -> Value:
    return cpu.primitive("mxcsr_read", widths=(32,), unit="sse")[0]


def _load_mxcsr(cpu: Cpu, word: Value) -> None:
    cpu.primitive("mxcsr_load", word, widths=(), unit="sse")
    cpu.register("mxcsr").set(word.zero_extend(64))


@instruction("NP 0F AE /2", unit="sse")
def ldmxcsr(cpu: Cpu, src: Operand) -> None:
    """MXCSR := 32 bits; a reserved one is #GP."""
    word = src.get()
    cpu.fault((word & _MXCSR_RESERVED).differs(0), GP, 0)
    _load_mxcsr(cpu, word)


@instruction("NP 0F AE /3", unit="sse")
def stmxcsr(cpu: Cpu, dst: Operand) -> None:
    """32 bits := MXCSR."""
    dst.set(_read_mxcsr(cpu))


class _Area:
    """The memory operand, field by field."""

    def __init__(self, cpu: Cpu, operand: Operand) -> None:
        self.cpu, self.operand = cpu, operand
        self.is_64 = cpu.form.name.endswith("64")  # REX.W: whole pointers, no selectors
        self.vectors = 16 if cpu.form.bitness == 64 else 8

    def at(self, offset: Value | int, width: int) -> Operand:
        address = self.cpu.effective_address(self.operand) + offset
        wrapped = address.low(self.cpu.form.address_width).zero_extend(64)
        return self.cpu.memory(self.operand.index, wrapped, width)

    def _whole(self, pointer: Value) -> Value:
        """Without REX.W 32 bits, beside a selector, which is zero (see x87_unit)."""
        return pointer if self.is_64 else pointer.low(32).zero_extend(64)

    def probe(self, offset: int) -> None:
        """Be sure that a byte may be written, before anything is: the byte that a page fault
        reports is the last of FXSAVE's area and the first of XSAVE's (measured on AMD's)."""
        self.at(offset, 8).update(lambda before: before)

    # -- saving --------------------------------------------------------------------------------

    def save_x87(self) -> None:
        cpu = self.cpu
        words = concat(cpu.register("fsw", 16).get(), cpu.register("fcw", 16).get())
        tags = cpu.register("ftw", 8).get().zero_extend(16)
        self.at(0, 64).set(concat(concat(cpu.register("fop", 16).get(), tags), words))
        for offset, pointer in ((_FIP, "fip"), (_FDP, "fdp")):
            self.at(offset, 64).set(self._whole(cpu.register(pointer).get()))
        for number in range(8):
            value = cpu.read(Place("st", 80, number))
            self.at(_STACK + 16 * number, 128).set(value.zero_extend(128))

    def save_mxcsr(self) -> None:
        self.at(_MXCSR, 64).set(concat(const(MXCSR_MASK, 32), _read_mxcsr(self.cpu)))

    def save_vectors(self) -> None:
        for number in range(self.vectors):
            self.at(_VECTORS + 16 * number, 128).set(self.cpu.xmm(number).get())

    # -- loading -------------------------------------------------------------------------------

    def load_x87(self) -> None:
        cpu = self.cpu
        head = self.at(0, 64).get()
        fcw, fsw = head.low(16), head.bits(16, 16)
        for offset, pointer in ((_FIP, "fip"), (_FDP, "fdp")):
            cpu.register(pointer).set(self._whole(self.at(offset, 64).get()))
        top = fsw.bits(FSW_TOP_SHIFT, 3)
        for physical in range(8):
            number = const(physical, 3) - top
            place = (number.zero_extend(64) << 4) + _STACK
            self._set_stack(physical, self.at(place, 80).get())
        self._set_control(fcw, fsw)
        cpu.register("ftw").set(head.bits(32, 8).zero_extend(64))
        cpu.register("fop").set(head.bits(48, 11).zero_extend(64))

    def reset_x87(self) -> None:
        self._set_control(const(FCW_INIT, 16), const(0, 16))
        for slot in ("ftw", "fop", "fip", "fdp"):
            self.cpu.register(slot).set(const(0, 64))
        for physical in range(8):
            self._set_stack(physical, const(0, 80))

    def _set_stack(self, physical: int, value: Value) -> None:
        self.cpu.write(Place("x87", 80, physical), value)

    def _set_control(self, fcw: Value, fsw: Value) -> None:
        control = load_control(self.cpu, fcw)
        self.cpu.register("fsw", 16).set(summarised(fsw, control))

    def mxcsr(self) -> Value:
        """The word in the area, which must be one that MXCSR can hold."""
        word = self.at(_MXCSR, 32).get()
        self.cpu.fault((word & _MXCSR_RESERVED).differs(0), GP, 0)
        return word

    def load_vectors(self) -> None:
        for number in range(self.vectors):
            self.cpu.xmm(number).set(self.at(_VECTORS + 16 * number, 128).get())

    def reset_vectors(self) -> None:
        for number in range(self.vectors):
            self.cpu.xmm(number).set(const(0, 128))


def _fxsave(cpu: Cpu, dst: Operand) -> None:
    """x87 and SSE state to 512 bytes; what is not state stays as it was."""
    require_alignment(cpu, dst)
    area = _Area(cpu, dst)
    area.probe(_HEADER - 1)
    area.save_x87()
    area.save_mxcsr()
    area.save_vectors()


def _fxrstor(cpu: Cpu, src: Operand) -> None:
    """x87 and SSE state from 512 bytes."""
    require_alignment(cpu, src)
    area = _Area(cpu, src)
    area.at(_HEADER - 1, 8).get()
    mxcsr = area.mxcsr()
    area.load_x87()
    area.load_vectors()
    _load_mxcsr(cpu, mxcsr)


for _suffix, _rex in (("", ""), ("64", "REX.W ")):
    instruction(f"NP {_rex}0F AE /0", name="fxsave" + _suffix, unit="fxsave")(_fxsave)
    instruction(f"NP {_rex}0F AE /1", name="fxrstor" + _suffix, unit="fxsave")(_fxrstor)


def _requested(cpu: Cpu) -> Value:
    """EDX:EAX and XCR0: the components to be saved or loaded (RFBM); #UD without OSXSAVE."""
    cpu.fault(cpu.register("cr4").get().bit(18) ^ 1, UD)
    asked = concat(cpu.register("rdx", 32).get(), cpu.register("rax", 32).get())
    return asked & cpu.register("xcr0").get()


def _xsave(cpu: Cpu, dst: Operand) -> None:
    """The components asked for to the area, whether or not they are in their initial state."""
    requested, area = _requested(cpu), _Area(cpu, dst)
    require_alignment(cpu, dst, 64)
    area.probe(0)
    header = area.at(_HEADER, 64)
    before = header.get()
    with cpu.when(requested.bit(_X87)):
        area.save_x87()
    with cpu.when(requested.bit(_SSE)):
        area.save_mxcsr()
        area.save_vectors()
    header.set((before & ~requested) | requested)


def _xrstor(cpu: Cpu, src: Operand) -> None:
    """The components asked for from the area, or their initial state where XSTATE_BV says so.

    MXCSR comes from the area whenever SSE is asked for (SDM 1, "Operation of XRSTOR").
    """
    requested, area = _requested(cpu), _Area(cpu, src)
    require_alignment(cpu, src, 64)
    area.at(0, 8).get()
    present = area.at(_HEADER, 64).get()
    reserved = area.at(_HEADER + 8, 64).get() | area.at(_HEADER + 16, 64).get()
    cpu.fault((present & ~cpu.register("xcr0").get()).differs(0), GP, 0)
    cpu.fault(reserved.differs(0), GP, 0)
    _restore(cpu, requested & present, _X87, area.load_x87)
    _restore(cpu, requested & ~present, _X87, area.reset_x87)
    _restore(cpu, requested & present, _SSE, area.load_vectors)
    _restore(cpu, requested & ~present, _SSE, area.reset_vectors)
    _restore(cpu, requested, _SSE, lambda: _load_mxcsr(cpu, area.mxcsr()))


def _restore(cpu: Cpu, components: Value, number: int, load: Callable[[], None]) -> None:
    with cpu.when(components.bit(number)):
        load()


for _suffix, _rex in (("", ""), ("64", "REX.W ")):
    instruction(f"NP {_rex}0F AE /4", name="xsave" + _suffix, unit="xsave")(_xsave)
    instruction(f"NP {_rex}0F AE /5", name="xrstor" + _suffix, unit="xsave")(_xrstor)
