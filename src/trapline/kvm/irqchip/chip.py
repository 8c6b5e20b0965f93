"""The local APICs of one VM, and the bus between them (kvm_irq_delivery_to_apic)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trapline.arch import apic
from trapline.arch.apic import Delivery
from trapline.kvm.irqchip.alarm import Alarm
from trapline.kvm.irqchip.lapic import LocalApic
from trapline.kvm.irqchip.message import Message
from trapline.kvm.irqchip.rate import TscRate

if TYPE_CHECKING:
    from trapline.kvm.vcpu import SoftwareVcpu


class Chip:
    """KVM_CAP_SPLIT_IRQCHIP: the 8259 and the I/O APIC are the VMM's."""

    def __init__(self) -> None:
        self.alarm = Alarm()
        self.rate = TscRate()
        self._apics: list[LocalApic] = []

    def add(self, vcpu: SoftwareVcpu) -> LocalApic:
        """The APIC of a new vCPU."""
        one = LocalApic(vcpu, self)
        self._apics = [*self._apics, one]
        return one

    def deliver(self, message: Message, source: LocalApic | None = None) -> int:
        """To all it is for; how many took it."""
        targets = [one for one in self._apics if message.is_for(one, source)]
        if not message.to_lowest:
            return sum([one.accept(message) for one in targets])
        targets = [one for one in targets if one.is_enabled and one.is_software_enabled]
        if not targets:
            return 0
        chosen = min(targets, key=lambda one: one.arbitration)
        chosen.arbitration = 1 + max(one.arbitration for one in targets)
        return int(chosen.accept(_as_fixed(message)))

    def signal(self, address: int, data: int) -> int:
        """KVM_SIGNAL_MSI; from any thread."""
        return self.deliver(Message.from_msi(address, data))

    def send(self, source: LocalApic, command: int, destination: int) -> None:
        """An interrupt command (kvm_apic_send_ipi)."""
        message = Message.from_command(command, destination)
        if message.mode <= Delivery.LOWEST_PRIORITY and message.vector < apic.FIRST_VECTOR:
            source.note_error(apic.ESR_SEND_ILLEGAL_VECTOR)
            return
        self.deliver(message, source)

    def close(self) -> None:
        self.alarm.close()


def _as_fixed(message: Message) -> Message:
    is_lowest = message.mode == Delivery.LOWEST_PRIORITY
    return replace(message, mode=Delivery.FIXED) if is_lowest else message
