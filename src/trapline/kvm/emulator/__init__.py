"""The instruction emulator: what the hypervisor does in the guest's place."""

from trapline.kvm.emulator.emulator import Emulator, Origin
from trapline.kvm.emulator.failure import ExitInformation, delivery_failure
from trapline.kvm.emulator.prefix import handle_undefined_opcode

__all__ = [
    "Emulator",
    "ExitInformation",
    "Origin",
    "delivery_failure",
    "handle_undefined_opcode",
]
