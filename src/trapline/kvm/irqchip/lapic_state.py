"""KVM_GET_LAPIC and KVM_SET_LAPIC: the registers as the memory page holds them."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from trapline.arch import apic
from trapline.kvm.irqchip import register_file

if TYPE_CHECKING:
    from trapline.kvm.irqchip.lapic import LocalApic

SIZE: Final = 0x400
_WORDS: Final = (
    *(apic.LVR, apic.TPR, apic.PPR, apic.LDR, apic.SVR, apic.ESR, *apic.LVTS),
    *(apic.INITIAL_COUNT, apic.CURRENT_COUNT, apic.DIVIDE),
)
_BANKS: Final = {apic.ISR: "isr", apic.TMR: "tmr", apic.IRR: "irr"}


def get(one: LocalApic) -> bytes:
    """struct kvm_lapic_state; the ID stands in the upper eight bits in x2APIC mode too."""
    area = bytearray(SIZE)
    with one.lock:
        one.timer.ring()  # what is due and has not rung yet is to be in the page
        for offset in _WORDS:
            struct.pack_into("<I", area, offset, register_file.read(one, offset) or 0)
        for bank, name in _BANKS.items():
            for i in range(8):
                part = int(getattr(one, name)) >> 32 * i & 0xFFFFFFFF
                struct.pack_into("<I", area, bank + 16 * i, part)
        struct.pack_into("<I", area, apic.ID, one.id << 24 & 0xFFFFFFFF)
        struct.pack_into("<I", area, apic.DFR, one.dfr)
        struct.pack_into("<I", area, apic.ICR, one.icr & 0xFFFFFFFF)
        struct.pack_into("<I", area, apic.ICR_HIGH, one.icr >> 32)
    return bytes(area)


def set(one: LocalApic, area: bytes) -> None:
    """kvm_apic_set_state(); in x2APIC mode ID and logical ID are the mode's."""
    if len(area) != SIZE:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def word(offset: int) -> int:
        return int.from_bytes(area[offset : offset + 4], "little")

    with one.lock:
        one.svr = word(apic.SVR) & apic.SVR_WRITABLE
        if not one.is_x2apic:
            one.id, one.ldr, one.dfr = word(apic.ID) >> 24, word(apic.LDR), word(apic.DFR)
        one.esr = word(apic.ESR)
        one.icr = word(apic.ICR) | word(apic.ICR_HIGH) << 32
        for entry in apic.LVTS:
            one.lvt[entry] = word(entry)
        for bank, name in _BANKS.items():
            setattr(one, name, sum(word(bank + 16 * i) << 32 * i for i in range(8)))
        one.timer.set_mode(word(apic.LVT_TIMER) >> apic.LVT_TIMER_MODE_SHIFT & 3)
        one.timer.divide = word(apic.DIVIDE)
        one.timer.resume(word(apic.INITIAL_COUNT), word(apic.CURRENT_COUNT))
        one.write_tpr(word(apic.TPR) & 0xFF)
