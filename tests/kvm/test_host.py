"""What only the host's KVM does so far; skipped where /dev/kvm does not open."""

from __future__ import annotations

from tests.kvm.guest import long_mode
from trapline.kvm import Kvm, exits


def test_an_access_outside_the_slots_is_mmio(host: Kvm) -> None:
    code = b"\x48\x89\x04\x25\x00\x00\x00\x40" + b"\x8b\x1c\x25\x04\x00\x00\x40" + b"\xf4"
    guest = long_mode(host, code)
    guest.memory.write_quads(0x2008, 0x7007)
    guest.memory.write_quads(0x7000, 0x40000000 | 0x87)  # a 2 MiB page at 1 GiB
    guest.vcpu.regs.rax = 0x1122334455667788
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Mmio)
    assert (exit.guest_physical, exit.size, exit.is_write) == (0x40000000, 8, True)
    assert bytes(exit.data) == bytes.fromhex("8877665544332211")
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Mmio)
    assert (exit.guest_physical, exit.size, exit.is_write) == (0x40000004, 4, False)
    exit.data[:] = b"\xef\xbe\xad\xde"
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rbx == 0xDEADBEEF
    guest.close()
