"""The hypervisor, with KVM's API: names only."""

from trapline.kvm import abi, exits, quirks
from trapline.kvm.api import Kvm, RegisterView, Vcpu, Vm
from trapline.kvm.factory import open_kvm
from trapline.kvm.quirks import Quirk
from trapline.kvm.structures import (
    DebugRegs,
    Dtable,
    Fpu,
    Regs,
    Segment,
    Sregs,
    Translation,
    VcpuEvents,
)

__all__ = [
    "DebugRegs",
    "Dtable",
    "Fpu",
    "Kvm",
    "Quirk",
    "RegisterView",
    "Regs",
    "Segment",
    "Sregs",
    "Translation",
    "Vcpu",
    "VcpuEvents",
    "Vm",
    "abi",
    "exits",
    "open_kvm",
    "quirks",
]
