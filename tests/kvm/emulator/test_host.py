"""The host's KVM asks its VMM the same, wherever its emulator knows the instruction."""

from __future__ import annotations

import pytest

from tests.kvm.emulator.devices import DEVICE, DEVICE_PHYSICAL, Vmm
from tests.kvm.emulator.test_mmio import FORMS, PATTERN, device_guest
from tests.kvm.guest import PAGE_DIRECTORY
from tests.kvm.host import open_host
from trapline.kvm import Kvm, exits, open_kvm
from trapline.kvm.host import HostKvm

UNDEFINED_FLAGS = ("mul m", "imul r, m", "div m")


@pytest.fixture(scope="module")
def host() -> Kvm:
    return open_host()


def _run(kvm: Kvm, name: str, at: int) -> tuple[exits.Exit, object]:
    guest = device_guest(kvm, bytes.fromhex(FORMS[name]), at)
    vmm = Vmm(guest, bytearray(PATTERN[:0x3000]))
    end = vmm.run()
    regs = guest.vcpu.get_regs()
    if name in UNDEFINED_FLAGS:
        regs.rflags = 0
    guest.close()
    return end, (vmm.seen, regs, bytes(vmm.content))


def test_device_accesses_are_as_the_hosts(host: Kvm) -> None:
    """Sizes, order, fragments at a page's end, and the state afterwards."""
    software = open_kvm(engine="interp")
    unknown = set()
    for name in FORMS:
        for offset in (0x10, 0xFF0 if name.endswith("aligned") else 0xFFD):
            end, wanted = _run(host, name, DEVICE + offset)
            if isinstance(end, exits.InternalError):  # KVM does not emulate everything
                unknown.add(name)
                continue
            assert _run(software, name, DEVICE + offset)[1] == wanted, (name, offset)
    assert isinstance(host, HostKvm) and len(unknown) < len(FORMS) // 4


def test_what_cannot_be_emulated_is_told_as_by_the_host(host: Kvm) -> None:
    """Flags, then the bytes that were fetched; what the processor says of the exit differs."""
    told = []
    for kvm in (host, open_kvm(engine="interp")):
        guest = device_guest(kvm, b"\xff\xe7", DEVICE)
        end = guest.vcpu.run()
        assert isinstance(end, exits.InternalError)
        told.append((end.suberror, end.data[0], len(end.data), guest.vcpu.get_regs().rip))
        guest.close()
    assert told[0] == told[1]


def test_the_bytes_of_an_instruction_are_told_as_by_the_host(host: Kvm) -> None:
    """PADDD, which KVM's emulator does not know; here the page tables are what cannot be read."""
    guest = device_guest(host, b"\x66\x0f\xfe\x07", DEVICE)
    end = guest.vcpu.run()
    guest.close()
    if not isinstance(end, exits.InternalError):
        pytest.skip("the host's KVM emulates PADDD")
    own = device_guest(open_kvm(engine="interp"), b"\x66\x0f\xfe\x07", DEVICE + 0x200000)
    own.memory.write_quads(PAGE_DIRECTORY + 24, DEVICE_PHYSICAL | 7)
    failure = own.vcpu.run()
    assert isinstance(failure, exits.InternalError)
    assert failure.data[:3] == end.data[:3]
