"""The local APIC's registers as the guest reaches them: by MSR in x2APIC mode, else in memory.

`None` and `False` are for what there is not: #GP by MSR, an error in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch import apic
from trapline.arch.apic import Shorthand

if TYPE_CHECKING:
    from trapline.kvm.irqchip.lapic import LocalApic

_MASK_32: Final = 0xFFFFFFFF
_X2APIC_MSRS: Final = 0x800
_BANKS: Final = {apic.ISR: "isr", apic.TMR: "tmr", apic.IRR: "irr"}
_BANK_SIZE: Final = 0x80
_TIMER_MODES: Final = 3 << apic.LVT_TIMER_MODE_SHIFT
_TIMER_MODES_WITHOUT_DEADLINE: Final = 1 << apic.LVT_TIMER_MODE_SHIFT
_DIVIDE: Final = 0xB
_COMMAND: Final = _MASK_32 & ~apic.ICR_BUSY
_DESTINATION: Final = 0xFF << 24
_VERSION: Final = apic.VERSION | (len(apic.LVTS) - 1) << 16
_READ_ONLY_IN_X2APIC: Final = (apic.ID, apic.LDR, apic.DFR, apic.ICR_HIGH)
# SDM 3A, "Reserved Bit Checking"; bits that are only read may be written, to no effect.
_RESERVED_IN_X2APIC: Final[dict[int, int]] = {
    **{entry: _MASK_32 & ~(bits | apic.LVT_STATUS) for entry, bits in apic.LVT_WRITABLE.items()},
    **dict.fromkeys((apic.EOI, apic.ESR), _MASK_32),
    **dict.fromkeys((apic.TPR, apic.SELF_IPI), _MASK_32 & ~0xFF),
    apic.SVR: _MASK_32 & ~apic.SVR_WRITABLE,
    apic.DIVIDE: _MASK_32 & ~_DIVIDE,
}
_RESERVED_IN_X2APIC[apic.LVT_TIMER] &= ~_TIMER_MODES
_RESERVED_IN_X2APIC[apic.LVT_LINT0] &= ~apic.LVT_REMOTE_IRR
_RESERVED_IN_X2APIC[apic.LVT_LINT1] &= ~apic.LVT_REMOTE_IRR


def read(one: LocalApic, offset: int) -> int | None:
    """A register of 32 bits, by its offset in the page (kvm_lapic_reg_read)."""
    for bank, name in _BANKS.items():
        if bank <= offset < bank + _BANK_SIZE:
            return int(getattr(one, name)) >> 32 * ((offset - bank) // 16) & _MASK_32
    if offset in one.lvt:
        return one.lvt[offset]
    match offset:
        case apic.ID:
            return one.id if one.is_x2apic else one.id << 24 & _MASK_32
        case apic.LVR:
            return _VERSION
        case apic.TPR:
            return one.tpr
        case apic.PPR:
            return one.ppr
        case apic.LDR:
            return one.ldr
        case apic.SVR:
            return one.svr
        case apic.ESR:
            return one.esr
        case apic.ICR:
            return one.icr & _MASK_32
        case apic.INITIAL_COUNT:
            return one.timer.initial_count
        case apic.CURRENT_COUNT:
            return one.timer.current_count()
        case apic.DIVIDE:
            return one.timer.divide
    if one.is_x2apic:
        return None
    return {apic.DFR: one.dfr, apic.ICR_HIGH: one.icr >> 32, apic.APR: 0}.get(offset)


def write(one: LocalApic, offset: int, word: int) -> bool:
    """A register of 32 bits (kvm_lapic_reg_write); the command register has one of its own."""
    reserved = _RESERVED_IN_X2APIC.get(offset, 0)
    if one.is_x2apic and (offset in _READ_ONLY_IN_X2APIC or word & reserved):
        return False
    if offset in one.lvt:
        _write_lvt(one, offset, word)
        return True
    match offset:
        case apic.ID:
            one.id = word >> 24
        case apic.TPR:
            one.write_tpr(word & 0xFF)
        case apic.EOI:
            one.end_of_interrupt()
        case apic.LDR:
            one.ldr = word & _DESTINATION
        case apic.DFR:
            one.dfr = word | 0x0FFFFFFF
        case apic.SVR:
            _write_svr(one, word)
        case apic.ESR:
            one.latch_errors()
        case apic.ICR_HIGH:
            one.icr = one.icr & _MASK_32 | (word & _DESTINATION) << 32
        case apic.INITIAL_COUNT:
            with one.lock:
                one.timer.start(word)
        case apic.DIVIDE:
            with one.lock:
                one.timer.set_divide(word & _DIVIDE)
        case apic.SELF_IPI if one.is_x2apic:
            command = Shorthand.SELF << apic.ICR_SHORTHAND_SHIFT | word
            one.chip.send(one, command, 0)
        case _:
            return False
    return True


def write_command(one: LocalApic, command: int, destination: int) -> None:
    """The interrupt command register's lower half, which sends."""
    command &= _COMMAND
    one.icr = one.icr & ~_MASK_32 | command
    one.chip.send(one, command, destination)


def read_msr(one: LocalApic, index: int) -> int | None:
    """RDMSR of 0x800 to 0x8FF."""
    offset = (index - _X2APIC_MSRS) * 16
    if not one.is_x2apic or offset >= apic.PAGE_SIZE:
        return None
    return one.icr if offset == apic.ICR else read(one, offset)


def write_msr(one: LocalApic, index: int, word: int) -> bool:
    """WRMSR of 0x800 to 0x8FF."""
    offset = (index - _X2APIC_MSRS) * 16
    if not one.is_x2apic or offset >= apic.PAGE_SIZE:
        return False
    if offset == apic.ICR:
        if word & apic.ICR_RESERVED:
            return False
        one.icr = word & ~_MASK_32
        write_command(one, word & _MASK_32, word >> 32)
        return True
    return not word >> 32 and write(one, offset, word)


def _write_lvt(one: LocalApic, entry: int, word: int) -> None:
    with one.lock:
        writable = apic.LVT_WRITABLE[entry]
        if entry == apic.LVT_TIMER:
            modes = _TIMER_MODES if one.has_tsc_deadline else _TIMER_MODES_WITHOUT_DEADLINE
            writable |= modes
        if not one.is_software_enabled:
            word |= apic.LVT_MASKED
        one.lvt[entry] = word & writable
        if entry == apic.LVT_TIMER:
            one.timer.set_mode((word & writable) >> apic.LVT_TIMER_MODE_SHIFT & 3)
    one.ask()


def _write_svr(one: LocalApic, word: int) -> None:
    """Switched off, all of the local vector table is masked."""
    with one.lock:
        one.svr = word & apic.SVR_WRITABLE
        if not one.is_software_enabled:
            for entry in one.lvt:
                one.lvt[entry] |= apic.LVT_MASKED
    one.ask()
