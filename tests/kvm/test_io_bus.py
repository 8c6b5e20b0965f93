"""Devices inside the hypervisor: who is asked, and who is not (kvm_io_bus)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from trapline.kvm.io_bus import IoBus
from trapline.kvm.vcpu import SoftwareVcpu

VCPU = cast("SoftwareVcpu", None)  # devices of these tests do not look at it


@dataclass
class Register:
    """Four bytes that answer; odd addresses are refused."""

    fill: int
    written: list[tuple[int, bytes]] = field(default_factory=list)

    def read(self, vcpu: SoftwareVcpu, address: int, size: int) -> bytes | None:
        return None if address & 1 else bytes([self.fill]) * size

    def write(self, vcpu: SoftwareVcpu, address: int, data: bytes) -> bool:
        if address & 1:
            return False
        self.written.append((address, data))
        return True


def test_an_access_must_lie_inside_the_range() -> None:
    bus, device = IoBus(), Register(0x5A)
    bus.register(0x1000, 4, device)
    assert bus.read(VCPU, 0x1000, 4) == b"\x5a" * 4
    assert bus.read(VCPU, 0x1002, 4) is None
    assert bus.read(VCPU, 0xFFE, 4) is None
    assert not bus.write(VCPU, 0x1004, b"\0")
    assert device.written == []


def test_a_refused_access_goes_on_to_the_next_device() -> None:
    bus, first, second = IoBus(), Register(1), Register(2)
    bus.register(0x1000, 0x10, first)
    bus.register(0x1000, 0x10, second)
    assert bus.write(VCPU, 0x1000, b"ab") and not bus.write(VCPU, 0x1001, b"c")
    assert (first.written, second.written) == ([(0x1000, b"ab")], [])
    bus.unregister(first)
    assert bus.read(VCPU, 0x1000, 2) == b"\2\2"
