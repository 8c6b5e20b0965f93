"""The local APIC's page in guest-physical memory, for the bus of devices in the hypervisor.

It follows IA32_APIC_BASE, so it is asked for every address and answers for its own page; in
x2APIC mode there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch import apic
from trapline.kvm.irqchip import register_file

if TYPE_CHECKING:
    from trapline.kvm.irqchip.lapic import LocalApic
    from trapline.kvm.vcpu import SoftwareVcpu

_WIDTH: Final = 4
_BASE: Final = -apic.PAGE_SIZE & (1 << 52) - 1
EVERYWHERE: Final = 1 << 52


class Page:
    """One vCPU's."""

    def __init__(self, one: LocalApic) -> None:
        self._apic = one

    def _offset(self, vcpu: SoftwareVcpu, address: int) -> int | None:
        one = self._apic
        if not one.is_enabled or one.is_x2apic or (vcpu.apic_base ^ address) & _BASE:
            return None
        return address & apic.PAGE_SIZE - 1

    def read(self, vcpu: SoftwareVcpu, address: int, size: int) -> bytes | None:
        """Any part of the 32 bits at a multiple of 16 (apic_mmio_read)."""
        offset = self._offset(vcpu, address)
        if offset is None:
            return None
        inside = offset & 15
        if inside + size > _WIDTH:
            return bytes(size)
        return self._read(offset & ~15).to_bytes(_WIDTH, "little")[inside : inside + size]

    def _read(self, offset: int) -> int:
        word = register_file.read(self._apic, offset)
        if word is None:
            self._apic.note_error(apic.ESR_ILLEGAL_REGISTER)
        return word or 0

    def write(self, vcpu: SoftwareVcpu, address: int, data: bytes) -> bool:
        """Only 32 bits at a multiple of 16 (apic_mmio_write); others are ignored."""
        offset = self._offset(vcpu, address)
        if offset is None:
            return False
        if len(data) == _WIDTH and not offset & 15:
            self._write(offset, int.from_bytes(data, "little"))
        return True

    def _write(self, offset: int, word: int) -> None:
        one = self._apic
        if offset == apic.ICR:
            register_file.write_command(one, word, one.icr >> 56)
        elif not register_file.write(one, offset, word):
            one.note_error(apic.ESR_ILLEGAL_REGISTER)
