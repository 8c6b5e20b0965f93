"""Memory slots: what KVM accepts, how large the pages are, and what follows a change."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from tests.kvm.guest import DATA, SIZE, Memory, long_mode
from trapline.arch.paging import EPT_WRITE
from trapline.kvm import Kvm, abi, exits
from trapline.kvm.mmu import Slot, Slots
from trapline.kvm.tdp import Tables
from trapline.kvm.vmx.ept import EPT

HLT = b"\xf4"
GIB = 1 << 30


@pytest.mark.parametrize(
    ("guest_physical", "host", "size", "touched", "shift"),
    [
        (0, 0x7F0000000000, 4 * GIB, GIB + 5, 30),
        (0, 0x7F0000200000, 4 * GIB, 5, 21),  # addresses agree modulo 2 MiB only
        (0, 0x7F0000001000, 4 * GIB, 5, 12),
        (GIB, 0x7F0000000000, GIB // 2, GIB + 5, 21),  # the slot ends inside the GiB
        (0x201000, 0x7F0000001000, 0x400000, 0x201005, 12),  # begins inside the 2 MiB
        (0x201000, 0x7F0000001000, 0x400000, 0x400005, 21),
    ],
)
def test_the_largest_page_that_slot_and_addresses_allow_is_used(
    guest_physical: int, host: int, size: int, touched: int, shift: int
) -> None:
    """An EPT entry's physical address is the host's virtual one."""
    ept = Tables(EPT)
    slot = Slot(guest_physical, size, host, 0, 0)
    ept.map(touched, slot)
    word, found = ept.leaf(touched)
    assert found == shift
    page = word & (1 << 52) - 1 & -1 << shift
    assert page + (touched & (1 << shift) - 1) == host + touched - guest_physical


def test_read_only_slots_have_no_write_right() -> None:
    ept = Tables(EPT)
    ept.map(0, Slot(0, 0x1000, 0x7F0000000000, abi.MEM_READONLY, 0))
    assert not ept.leaf(0)[0] & EPT_WRITE


def test_slots_are_found_by_address() -> None:
    slots = Slots()
    slots.set(Slot(0x1000, 0x2000, 0x10000, 0, 0))
    slots.set(Slot(0x5000, 0x1000, 0x20000, 0, 1))
    assert [slots.host(at) for at in (0xFFF, 0x1000, 0x2FFF, 0x3000, 0x5FFF, 0x6000)] == [
        None, 0x10000, 0x11FFF, None, 0x20FFF, None
    ]  # fmt: skip


def test_a_slot_is_found_whatever_comes_and_goes_meanwhile() -> None:
    """As with KVM's memslots, who looks sees an old map or a new one, never a mixture."""
    slots, lasting = Slots(), Slot(0x200000, 0x1000, 0x30000000, 0, 2)
    slots.set(lasting)
    slots.set(Slot(0x800000, 0x1000, 0x50000000, 0, 3))
    ends = threading.Event()

    def come_and_go() -> None:
        while not ends.is_set():
            slots.set(Slot(0x1000, 0x1000, 0x10000000, 0, 1))
            slots.set(Slot(0, 0, 0, 0, 1))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        found = {slots.find(0x200000) for _ in range(100_000)}
    finally:
        ends.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert found == {lasting}


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ((1, 0, 0x123, 0x1000), "Invalid argument"),
        ((1, 0, 0x800000, 0x1001), "Invalid argument"),
        ((1, 1 << 10, 0x800000, 0x1000), "Invalid argument"),
        ((1, 0, SIZE - 0x1000, 0x2000), "exists"),  # overlaps slot 0
        ((0, 0, 0, 0x1000), "Invalid argument"),  # another size
        ((5, 0, 0x800000, 0), "Invalid argument"),  # nothing to delete
    ],
)
def test_regions_kvm_refuses_are_refused(
    kvm: Kvm, region: tuple[int, int, int, int], message: str
) -> None:
    guest = long_mode(kvm, HLT)
    with pytest.raises(OSError, match=message):
        guest.vm.set_user_memory_region(*region, guest.memory.address)
    guest.close()


def test_a_slot_can_move_and_its_old_place_is_empty(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x48\x8b\x07" + HLT)  # mov rax, [rdi]
    more = Memory(0x200000)
    more.write_quads(8, 0x1234)
    guest.memory.write_quads(0x3010, 0x800087, 0xA00087)  # linear 4 MiB, 6 MiB
    guest.vm.set_user_memory_region(1, 0, 0x800000, more.size, more.address)
    guest.vcpu.regs.rdi = 0x400008
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0x1234
    guest.vm.set_user_memory_region(1, 0, 0xA00000, more.size, more.address)
    guest.vcpu.regs.rip, guest.vcpu.regs.rdi = 0x10000, 0x600008
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0x1234
    guest.vcpu.regs.rip, guest.vcpu.regs.rdi = 0x10000, 0x400008
    assert isinstance(guest.vcpu.run(), exits.Mmio | exits.InternalError)
    guest.close()


def test_a_slot_is_given_back_with_other_memory_behind_it(kvm: Kvm) -> None:
    """Deleting and making it anew is how KVM's users replace memory, code included."""
    guest = long_mode(kvm, b"\xff\xd7" + HLT)  # call rdi
    guest.memory.write_quads(0x3010, 0x800087)
    codes = []
    for value in (7, 9):
        code = Memory(0x200000)
        code.write(0, b"\xb8" + value.to_bytes(4, "little") + b"\xc3")  # mov eax, value; ret
        codes.append(code)
    for code, value in zip(codes, (7, 9), strict=True):
        guest.vm.set_user_memory_region(1, 0, 0x800000, code.size, code.address)
        guest.vcpu.regs.rip, guest.vcpu.regs.rdi = 0x10000, 0x400000
        assert isinstance(guest.vcpu.run(), exits.Hlt)
        assert guest.vcpu.regs.rax == value
        guest.vm.set_user_memory_region(1, 0, 0x800000, 0, code.address)
    guest.close()


def test_code_replaced_behind_the_guests_back_is_seen_once_its_slot_was_renewed(
    software: Kvm,
) -> None:
    """What a VMM that writes code itself can rely on: translations of a deleted slot are gone."""
    guest = long_mode(software, b"\xff\xd7" + HLT)
    guest.memory.write_quads(0x3010, 0x800087)
    code = Memory(0x200000)
    for value in (7, 9):
        code.write(0, b"\xb8" + value.to_bytes(4, "little") + b"\xc3")
        guest.vm.set_user_memory_region(
            1, 0, 0x800000, 0 if value == 9 else code.size, code.address
        )
        if value == 9:
            guest.vm.set_user_memory_region(1, 0, 0x800000, code.size, code.address)
        guest.vcpu.regs.rip, guest.vcpu.regs.rdi = 0x10000, 0x400000
        assert isinstance(guest.vcpu.run(), exits.Hlt)
        assert guest.vcpu.regs.rax == value


def test_reads_of_a_read_only_slot_work_and_writes_do_not(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x48\x8b\x07" + b"\x48\x89\x07" + HLT)
    guest.memory.write_quads(0x3010, 0x800087)
    more = Memory(0x200000)
    more.write_quads(0, 5)
    guest.vm.set_user_memory_region(1, abi.MEM_READONLY, 0x800000, more.size, more.address)
    guest.vcpu.regs.rdi = 0x400000
    exit = guest.vcpu.run()
    assert guest.vcpu.regs.rax == 5
    assert isinstance(exit, exits.Mmio | exits.InternalError)
    guest.close()


def test_deleting_a_slot_waits_for_vcpus_that_run(software: Kvm) -> None:
    """No vCPU goes on with a translation of memory that is gone."""
    loop = b"\x48\xff\x07" + b"\xeb\xfb"  # inc qword [rdi]; jmp
    guest = long_mode(software, loop)
    guest.memory.write_quads(0x3010, 0x800087)
    more = Memory(0x200000)
    guest.vm.set_user_memory_region(1, 0, 0x800000, more.size, more.address)
    guest.vcpu.regs.rdi = 0x400000
    seen: list[exits.Exit] = []
    thread = threading.Thread(target=lambda: seen.append(guest.vcpu.run()))
    thread.start()
    while not more.quad(0):
        time.sleep(0.01)
    guest.vm.set_user_memory_region(1, 0, 0x800000, 0, more.address)
    count = more.quad(0)
    thread.join(60)
    assert isinstance(seen[0], exits.Mmio)
    assert more.quad(0) == count


def test_many_changes_of_the_map_never_show_old_memory(software: Kvm) -> None:
    """The tables of an old map are freed, and may come back at the same address."""
    guest = long_mode(software, b"\x48\x8b\x07" + HLT)
    guest.memory.write_quads(0x3010, 0x800087)
    memories = [Memory(0x200000) for _ in range(3)]
    for i in range(60):
        memory = memories[i % 3]
        memory.write_quads(0, i)
        guest.vm.set_user_memory_region(1, 0, 0x800000, memory.size, memory.address)
        guest.vcpu.regs.rip, guest.vcpu.regs.rdi = 0x10000, 0x400000
        assert isinstance(guest.vcpu.run(), exits.Hlt)
        assert guest.vcpu.regs.rax == i
        guest.vm.set_user_memory_region(1, 0, 0x800000, 0, memory.address)


def test_two_vcpus_run_at_once_on_the_same_memory(software: Kvm) -> None:
    """A locked counter is exact, whole lines and split lines alike."""
    loop = b"\xf0\x48\xff\x07" + b"\xf0\xff\x06" + b"\x48\xff\xc9" + b"\x75\xf4" + HLT
    guest = long_mode(software, loop)  # lock inc [rdi]; lock inc [rsi]; dec rcx; jnz; hlt
    first, second = guest.vcpu, guest.vm.create_vcpu(1)
    second.set_cpuid2(first.get_cpuid2())
    second.set_sregs(first.get_sregs())
    second.set_regs(first.get_regs())
    rounds = 2000
    for vcpu in (first, second):
        vcpu.regs.rdi, vcpu.regs.rsi, vcpu.regs.rcx = DATA, DATA + 0x3E, rounds
    seen: list[exits.Exit] = []
    threads = [
        threading.Thread(target=lambda vcpu=vcpu: seen.append(vcpu.run()))  # type: ignore[misc]
        for vcpu in (first, second)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [exits.Hlt(), exits.Hlt()]
    assert guest.memory.quad(DATA) == 2 * rounds
    assert int.from_bytes(guest.memory.read(DATA + 0x3E, 4), "little") == 2 * rounds
