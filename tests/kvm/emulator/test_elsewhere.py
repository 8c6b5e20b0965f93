"""Devices inside the hypervisor, slots that come and go, and device memory in other modes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.kvm.emulator.devices import DEVICE, DEVICE_PHYSICAL, ROM, ROM_PHYSICAL, Vmm
from tests.kvm.emulator.test_mmio import HLT, device_guest
from tests.kvm.guest import DATA, Guest, Memory
from trapline.arch.descriptor import AR_CODE32, AR_DATA32
from trapline.kvm import Kvm, Segment, exits
from trapline.kvm.vcpu import SoftwareVcpu

# -- devices inside the hypervisor ---------------------------------------------------------------


@dataclass
class Counter:
    """Each read gives the next number; what is written is kept."""

    reads: int = 0
    written: list[tuple[int, bytes]] = field(default_factory=list)

    def read(self, vcpu: SoftwareVcpu, address: int, size: int) -> bytes | None:
        self.reads += 1
        return self.reads.to_bytes(size, "little")

    def write(self, vcpu: SoftwareVcpu, address: int, data: bytes) -> bool:
        self.written.append((address - DEVICE_PHYSICAL, data))
        return True


@pytest.mark.parametrize(
    ("code", "reads", "written", "told"),
    [
        ("8b 07", 1, [], []),
        ("89 07", 0, [(0x10, b"\1\2\3\4")], []),
        ("f0 ff 07", 1, [(0x10, b"\2\0\0\0")], []),
        ("48 8d b7 00 10 00 00 a5", 0, [(0x10, b"\0\0\0\0")], [("read", 0x1010, 4)]),
        ("48 81 c7 00 10 00 00 a5", 1, [], [("write", 0x1010, 4)]),
        ("48 8d b7 00 10 00 00 f3 a6", 1, [], [("read", 0x1010, 1)]),
    ],
)
def test_devices_inside_the_hypervisor_come_first(
    software: Kvm, code: str, reads: int, written: list[object], told: list[tuple[str, int, int]]
) -> None:
    """One page is such a device's; the next is the VMM's.  Each access is made once, also when
    the instruction has to be tried again."""
    guest = device_guest(software, bytes.fromhex(code), DEVICE + 0x10)
    counter = Counter()
    assert isinstance(guest.vcpu, SoftwareVcpu)
    guest.vcpu.mmio_bus.register(DEVICE_PHYSICAL, 0x1000, counter)
    vmm = Vmm(guest)
    assert isinstance(vmm.run(), exits.Hlt)
    assert (counter.reads, counter.written) == (reads, written)
    assert vmm.seen == [(kind, DEVICE_PHYSICAL + at, size) for kind, at, size in told]


class TaskPriority:
    """An APIC's register that is CR8 too."""

    def read(self, vcpu: SoftwareVcpu, address: int, size: int) -> bytes | None:
        return bytes(size)

    def write(self, vcpu: SoftwareVcpu, address: int, data: bytes) -> bool:
        vcpu.state.cr8 = data[0] >> 4
        return True


def test_what_a_device_does_to_the_vcpu_is_not_undone(software: Kvm) -> None:
    guest = device_guest(software, bytes.fromhex("c6 07 50 44 0f 20 c0"), DEVICE)
    assert isinstance(guest.vcpu, SoftwareVcpu)
    guest.vcpu.mmio_bus.register(DEVICE_PHYSICAL, 0x1000, TaskPriority())
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == guest.vcpu.get_sregs().cr8 == 5


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("8b 07", ["read"]),
        ("89 07", ["write"]),
        ("f0 ff 07", ["read", "write"]),
        ("48 8d 77 f8 a5", ["write"]),
        ("87 07", ["read", "write"]),
    ],
)
def test_an_access_may_begin_in_memory_and_end_in_a_device(
    software: Kvm, code: str, told: list[str]
) -> None:
    """The last two bytes of memory, and the first two of the device behind it."""
    guest = device_guest(software, bytes.fromhex(code), DEVICE - 2)
    guest.memory.write(DEVICE - 10, b"12345678ab")
    plain = device_guest(software, bytes.fromhex(code), DATA + 2)
    plain.memory.write(DATA - 6, b"12345678abcd")
    vmm = Vmm(guest)
    vmm.content[:2] = b"cd"
    assert isinstance(vmm.run(), exits.Hlt) and isinstance(plain.vcpu.run(), exits.Hlt)
    assert vmm.seen == [(kind, DEVICE_PHYSICAL, 2) for kind in told]
    assert guest.memory.read(DEVICE - 2, 2) + vmm.content[:2] == plain.memory.read(DATA + 2, 4)
    assert guest.vcpu.regs.rax == plain.vcpu.regs.rax


# -- other modes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("paging", [False, True])
def test_32_bit_code_reaches_devices(software: Kvm, paging: bool) -> None:
    """Segments with a base, with and without 32-bit paging."""
    guest = Guest(software)
    code = bytes.fromhex("65 8b 1d 10 00 00 00 65 89 1d 20 00 00 00 65 ff 05 30 00 00 00")
    guest.memory.write(0x10000, code + HLT)
    guest.memory.write(0x1000, (0x83).to_bytes(4, "little"))  # 4 MiB pages
    guest.memory.write(0x1004, (DEVICE_PHYSICAL | 0x83).to_bytes(4, "little"))
    sregs = guest.vcpu.get_sregs()
    sregs.cs = Segment.from_attributes(8, 0, 0xFFFFFFFF, AR_CODE32)
    sregs.ds = sregs.es = sregs.ss = Segment.from_attributes(16, 0, 0xFFFFFFFF, AR_DATA32)
    base = 0x400000 if paging else DEVICE_PHYSICAL
    sregs.gs = Segment.from_attributes(24, base, 0xFFFFFFFF, AR_DATA32)
    sregs.cr0 |= 1 | (1 << 31 if paging else 0)
    sregs.cr3, sregs.cr4 = 0x1000, 1 << 4
    guest.vcpu.set_sregs(sregs)
    guest.vcpu.regs.rip = 0x10000
    vmm = Vmm(guest)
    vmm.content[0x10:0x14] = b"abcd"
    vmm.content[0x30] = 6
    assert isinstance(vmm.run(), exits.Hlt)
    assert vmm.content[0x20:0x24] == b"abcd"
    assert (vmm.content[0x30], len(vmm.seen)) == (7, 4)


def test_real_mode_reaches_devices(software: Kvm) -> None:
    guest = Guest(software)
    guest.vm.set_user_memory_region(0, 0, 0, 0, guest.memory.address)
    guest.vm.set_user_memory_region(0, 0, 0, 0x20000, guest.memory.address)
    guest.memory.write(0x1000, bytes.fromhex("26 a1 10 00 26 a3 20 00 26 86 26 31 00") + HLT)
    sregs = guest.vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    sregs.es.base, sregs.es.selector = 0xB8000, 0xB800
    guest.vcpu.set_sregs(sregs)
    guest.vcpu.regs.rip = 0x1000
    told = []
    while isinstance(exit := guest.vcpu.run(), exits.Mmio):
        told.append((exit.guest_physical, exit.size, exit.is_write))
        if not exit.is_write:
            exit.data[:] = b"ok"[: exit.size]
    assert isinstance(exit, exits.Hlt)
    assert told == [
        (0xB8010, 2, False), (0xB8020, 2, True), (0xB8031, 1, False), (0xB8031, 1, True)
    ]  # fmt: skip
    assert guest.vcpu.regs.rax & 0xFFFF == int.from_bytes(b"oo", "little")


@pytest.mark.parametrize(("code", "kind"), [("0f 01 27", "write"), ("0f 01 37", "read")])
def test_the_machine_status_word_goes_to_and_from_memory(
    software: Kvm, code: str, kind: str
) -> None:
    """SMSW and LMSW of memory, of a device and while CR0.CD has AMD's processor ask at each."""
    guest = device_guest(software, bytes.fromhex(code), DEVICE)
    sregs = guest.vcpu.get_sregs()
    sregs.cr0 |= 1 << 30
    guest.vcpu.set_sregs(sregs)
    vmm = Vmm(guest)
    vmm.content[:2] = b"\x09\0"  # TS and PE
    assert isinstance(vmm.run(), exits.Hlt)
    assert vmm.seen == [(kind, DEVICE_PHYSICAL, 2)]
    cr0 = guest.vcpu.get_sregs().cr0
    if kind == "write":
        assert int.from_bytes(vmm.content[:2], "little") == sregs.cr0 & 0xFFFF == cr0 & 0xFFFF
    else:
        assert cr0 == sregs.cr0 & ~0xE | 8


def test_a_slot_may_appear_where_there_was_none(software: Kvm) -> None:
    """And go away again: the emulator keeps no translation of what is not there any more."""
    guest = device_guest(software, b"\x8b\x07", DEVICE)
    rip = guest.vcpu.regs.rip
    more = Memory(0x200000)
    more.write_quads(0, 77)
    for _ in range(2):
        guest.vcpu.regs.rip = rip
        assert isinstance(guest.vcpu.run(), exits.Mmio)
        assert isinstance(guest.vcpu.run(), exits.Hlt)
        assert guest.vcpu.regs.rax == 0
        guest.vm.set_user_memory_region(1, 0, DEVICE_PHYSICAL, more.size, more.address)
        guest.vcpu.regs.rip = rip
        assert isinstance(guest.vcpu.run(), exits.Hlt)
        assert guest.vcpu.regs.rax == 77
        guest.vm.set_user_memory_region(1, 0, DEVICE_PHYSICAL, 0, more.address)


def test_memory_that_goes_while_the_vmm_answers_is_not_written(software: Kvm) -> None:
    """MOVSB from the device to a slot, twice; before the second is answered the slot is gone, and
    the write is the VMM's."""
    guest = device_guest(software, b"\xa4\xa4", DEVICE)
    memory = Memory(0x1000)
    guest.vm.set_user_memory_region(5, 0, ROM_PHYSICAL, 0x1000, memory.address)
    guest.vcpu.regs.rsi, guest.vcpu.regs.rdi = DEVICE, ROM
    told = []
    while isinstance(exit := guest.vcpu.run(), exits.Mmio):
        told.append((exit.is_write, exit.guest_physical))
        if not exit.is_write:
            exit.data[0] = len(told)
            if len(told) == 2:
                guest.vm.set_user_memory_region(5, 0, ROM_PHYSICAL, 0, 0)
    assert exit == exits.Hlt()
    assert told == [
        (False, DEVICE_PHYSICAL),
        (False, DEVICE_PHYSICAL + 1),
        (True, ROM_PHYSICAL + 1),
    ]
    assert memory.read(0, 2) == b"\1\0"
    guest.close()
