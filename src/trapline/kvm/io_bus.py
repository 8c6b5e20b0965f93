"""Devices inside the hypervisor, by address range: asked before an access leaves for userspace.

KVM's kvm_io_bus.  It knows ranges and nothing of what answers there; a device may refuse an access,
which then goes on to the next device and at last to the VMM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from trapline.kvm.vcpu import SoftwareVcpu


class IoDevice(Protocol):
    """What answers at addresses of a bus (kvm_io_device_ops)."""

    def read(self, vcpu: SoftwareVcpu, address: int, size: int) -> bytes | None:
        """The `size` bytes at `address`; None: not this device's."""

    def write(self, vcpu: SoftwareVcpu, address: int, data: bytes) -> bool:
        """False: not this device's."""


@dataclass(slots=True)
class IoBus:
    """Address ranges and their devices; those registered first are asked first."""

    _ranges: list[tuple[int, int, IoDevice]] = field(default_factory=list)

    def register(self, address: int, size: int, device: IoDevice) -> None:
        self._ranges = [*self._ranges, (address, address + size, device)]

    def unregister(self, device: IoDevice) -> None:
        self._ranges = [entry for entry in self._ranges if entry[2] is not device]

    def read(self, vcpu: SoftwareVcpu, address: int, size: int) -> bytes | None:
        for start, end, device in self._ranges:
            if start <= address and address + size <= end:
                data = device.read(vcpu, address, size)
                if data is not None:
                    return data
        return None

    def write(self, vcpu: SoftwareVcpu, address: int, data: bytes) -> bool:
        end_of_access = address + len(data)
        return any(
            start <= address and end_of_access <= end and device.write(vcpu, address, data)
            for start, end, device in self._ranges
        )
