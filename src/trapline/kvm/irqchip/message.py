"""Interrupt messages, and whom they are for (kvm_apic_match_dest); what an APIC does with one is
its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapline.arch import apic
from trapline.arch.apic import Delivery, Shorthand

if TYPE_CHECKING:
    from trapline.kvm.irqchip.lapic import LocalApic


@dataclass(frozen=True, slots=True)
class Message:
    """One interrupt on its way (kvm_lapic_irq)."""

    destination: int
    vector: int
    mode: int = Delivery.FIXED
    is_logical: bool = False
    is_level: bool = False
    is_asserted: bool = True
    shorthand: int = Shorthand.NONE
    to_lowest: bool = False
    """One of those addressed gets it, and not all."""
    is_device: bool = False
    """Comes from a device, whose destinations have eight bits."""

    @classmethod
    def from_command(cls, command: int, destination: int) -> Message:
        """From the interrupt command register and its destination field."""
        mode = command >> 8 & 7
        return cls(
            destination,
            command & 0xFF,
            mode,
            bool(command & apic.ICR_LOGICAL),
            bool(command & apic.ICR_LEVEL),
            bool(command & apic.ICR_ASSERT),
            command >> apic.ICR_SHORTHAND_SHIFT & 3,
            mode == Delivery.LOWEST_PRIORITY,
        )

    @classmethod
    def from_msi(cls, address: int, data: int) -> Message:
        """From what a device writes (SDM 3A, "Message Signalled Interrupts")."""
        mode = data >> 8 & 7
        hint = bool(address & apic.MSI_REDIRECTION_HINT)
        return cls(
            address >> apic.MSI_DESTINATION_SHIFT & 0xFF,
            data & 0xFF,
            mode,
            bool(address & apic.MSI_LOGICAL),
            bool(data & apic.ICR_LEVEL),
            bool(data & apic.ICR_ASSERT),
            to_lowest=mode == Delivery.LOWEST_PRIORITY or hint,
            is_device=True,
        )

    def is_for(self, target: LocalApic, source: LocalApic | None) -> bool:
        """Whether this APIC is addressed."""
        match self.shorthand:
            case Shorthand.SELF:
                return target is source
            case Shorthand.ALL:
                return True
            case Shorthand.OTHERS:
                return target is not source
        if self._is_broadcast(target, source):
            return True
        return self._is_logical_match(target) if self.is_logical else self._is_its_id(target)

    def _is_broadcast(self, target: LocalApic, source: LocalApic | None) -> bool:
        """A device's 0xFF is for all, in x2APIC mode too (kvm_apic_mda)."""
        if source is not None and source.is_x2apic:
            return self.destination == apic.BROADCAST_X2APIC
        return self.destination == apic.BROADCAST_XAPIC

    def _is_its_id(self, target: LocalApic) -> bool:
        return self.destination == target.id

    def _is_logical_match(self, target: LocalApic) -> bool:
        wanted, own = self.destination, target.ldr
        if target.is_x2apic:
            return wanted >> 16 == own >> 16 and bool(wanted & own & 0xFFFF)
        own >>= 24
        match target.dfr >> 28:
            case apic.DFR_FLAT:
                return bool(wanted & own)
            case apic.DFR_CLUSTER:
                return wanted >> 4 == own >> 4 and bool(wanted & own & 0xF)
        return False
