"""Interrupt controllers inside the hypervisor: names only."""

from trapline.kvm.irqchip import lapic_state, register_file
from trapline.kvm.irqchip.activity import Activity
from trapline.kvm.irqchip.chip import Chip
from trapline.kvm.irqchip.lapic import LocalApic
from trapline.kvm.irqchip.message import Message
from trapline.kvm.irqchip.page import EVERYWHERE, Page

__all__ = [
    "EVERYWHERE",
    "Activity",
    "Chip",
    "LocalApic",
    "Message",
    "Page",
    "lapic_state",
    "register_file",
]
