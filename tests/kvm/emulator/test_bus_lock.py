"""Locked accesses to device memory: a bus lock, though the hypervisor does the instruction."""

from __future__ import annotations

import pytest

from tests.kvm.emulator.conftest import MODELS
from tests.kvm.emulator.devices import DEVICE, DEVICE_PHYSICAL, Vmm, map_device
from tests.kvm.guest import DATA, Guest, handle, long_mode
from trapline.arch.debug import DR6_ACTIVE_LOW, DR6_BS, DR6_BUS_LOCK
from trapline.arch.msr import DEBUGCTL_BLD, IA32_DEBUGCTL
from trapline.arch.registers import RFLAGS_TF
from trapline.kvm import Kvm, abi, exits, open_kvm
from trapline.kvm.quirks import Quirk
from trapline.processor import BusLock, Cause, Outcome

HLT = b"\xf4"
LOCKED = {
    "lock add m, r": "f0 01 07",
    "xchg": "87 07",
    "lock cmpxchg, different": "f0 0f b1 0f",
    "lock xadd": "f0 48 0f c1 07",
    "lock bts": "f0 0f ab 0f",
    "lock cmpxchg8b": "f0 0f c7 0f",
}


class Observer:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.locks: list[tuple[BusLock, Outcome]] = []

    def bus_lock(self, lock: BusLock, outcome: Outcome) -> None:
        self.locks.append((lock, outcome))

    def bus_lock_total(self, *total: int) -> None: ...

    def undefined(self, rip: int, code: bytes, text: str) -> None: ...


def _guest(kvm: Kvm, code: str, cpl: int = 3, at: int = DEVICE + 0x20) -> Guest:
    guest = long_mode(kvm, bytes.fromhex(code) + b"\x0f\x0b", cpl)
    map_device(guest)
    handle(guest, 1, b"\x48\xff\xc3" + HLT)  # inc rbx
    handle(guest, 6, HLT)
    guest.vcpu.regs.rdi, guest.vcpu.regs.rax = at, 5
    guest.vcpu.set_msrs({IA32_DEBUGCTL: DEBUGCTL_BLD})
    return guest


@pytest.mark.parametrize("code", LOCKED.values(), ids=LOCKED.keys())
def test_a_locked_access_to_a_device_raises_db_at_cpl_3(software: Kvm, code: str) -> None:
    """Device memory is not write-back, so this is a bus lock; DR6[11] is 0 and RIP is after it."""
    guest = _guest(software, code)
    rip = guest.vcpu.regs.rip
    assert isinstance(Vmm(guest).run(), exits.Hlt)
    assert guest.vcpu.regs.rbx == 1
    assert guest.vcpu.get_debugregs().dr6 == DR6_ACTIVE_LOW & ~DR6_BUS_LOCK
    frame = guest.memory.quad(int(guest.vcpu.regs.rsp))
    assert frame == rip + len(bytes.fromhex(code))


@pytest.mark.parametrize("code", ["01 07", "48 ff 07", "89 07"])
def test_unlocked_accesses_raise_nothing(software: Kvm, code: str) -> None:
    guest = _guest(software, code)
    assert isinstance(Vmm(guest).run(), exits.Hlt)
    assert (guest.vcpu.regs.rbx, guest.vcpu.get_debugregs().dr6) == (0, DR6_ACTIVE_LOW)


def test_nothing_is_raised_at_cpl_0(software: Kvm) -> None:
    guest = _guest(software, LOCKED["xchg"], cpl=0)
    assert isinstance(Vmm(guest).run(), exits.Hlt)
    assert guest.vcpu.regs.rbx == 0


def test_nothing_is_raised_without_bld(software: Kvm) -> None:
    guest = _guest(software, LOCKED["xchg"])
    guest.vcpu.set_msrs({IA32_DEBUGCTL: 0})
    assert isinstance(Vmm(guest).run(), exits.Hlt)
    assert guest.vcpu.regs.rbx == 0


def test_single_step_and_bus_lock_are_one_exception(software: Kvm) -> None:
    guest = _guest(software, LOCKED["lock xadd"])
    guest.vcpu.regs.rflags |= RFLAGS_TF
    assert isinstance(Vmm(guest).run(), exits.Hlt)
    assert guest.vcpu.get_debugregs().dr6 == (DR6_ACTIVE_LOW | DR6_BS) & ~DR6_BUS_LOCK
    assert guest.vcpu.regs.rbx == 1


def test_a_debugger_that_steps_sees_the_bus_lock(software: Kvm) -> None:
    guest = _guest(software, LOCKED["lock xadd"])
    guest.vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP)
    exit = Vmm(guest).run()
    assert isinstance(exit, exits.Debug)
    assert exit.dr6 == (DR6_ACTIVE_LOW | DR6_BS) & ~DR6_BUS_LOCK


def test_the_observer_is_told_once(vendor: str) -> None:
    observer = Observer()
    guest = _guest(open_kvm(cpu=MODELS[vendor], observer=observer), LOCKED["lock xadd"])
    rip = guest.vcpu.regs.rip
    vmm = Vmm(guest)
    assert isinstance(vmm.run(), exits.Hlt)
    [(lock, outcome)] = observer.locks
    assert (lock.cause, lock.cpl, lock.size, outcome) == (Cause.UNCACHED, 3, 8, Outcome.DB)
    assert (lock.rip, lock.next_rip, lock.linear) == (rip, rip + 5, DEVICE + 0x20)
    assert vmm.seen == [(kind, DEVICE_PHYSICAL + 0x20, 8) for kind in ("read", "write")]


@pytest.mark.parametrize("is_on", [True, False])
def test_the_vmm_that_asked_for_bus_locks_is_told(software: Kvm, is_on: bool) -> None:
    """KVM_CAP_X86_BUS_LOCK_EXIT: the exit of the write bears KVM_RUN_X86_BUS_LOCK."""
    guest = _guest(software, LOCKED["xchg"], cpl=0)
    if is_on:  # for vCPUs made afterwards
        guest.vm.enable_cap(abi.Capability.X86_BUS_LOCK_EXIT, abi.BUS_LOCK_DETECTION_EXIT)
    vcpu = guest.vm.create_vcpu(1)
    vcpu.set_cpuid2(software.get_supported_cpuid())
    vcpu.set_sregs(guest.vcpu.get_sregs())
    vcpu.set_regs(guest.vcpu.get_regs())
    flags = []
    while not isinstance(exit := vcpu.run(), exits.Hlt):
        assert isinstance(exit, exits.Mmio)
        flags.append((exit.is_write, vcpu.flags))
    assert flags == [(False, 0), (True, abi.RUN_X86_BUS_LOCK if is_on else 0)]


def test_a_quirk_brings_back_upstreams_silence(vendor: str) -> None:
    kvm = open_kvm(cpu=MODELS[vendor], quirks=Quirk.EMULATOR_LOCKS_NOTHING)
    guest = _guest(kvm, LOCKED["xchg"])
    assert isinstance(Vmm(guest).run(), exits.Hlt)
    assert (guest.vcpu.regs.rbx, guest.vcpu.get_debugregs().dr6) == (0, DR6_ACTIVE_LOW)


@pytest.mark.parametrize("code", LOCKED.values(), ids=LOCKED.keys())
def test_split_locks_of_memory_are_bus_locks_in_the_emulator_too(software: Kvm, code: str) -> None:
    """emulator_cmpxchg_emulated() makes a write of them; here they are locks, seen by the guest."""
    guest = _guest(software, "0f 0b 6b 76 6d " + code, at=DATA + 62)
    assert isinstance(Vmm(guest).run(), exits.Hlt)
    assert guest.vcpu.regs.rbx == 1
    assert not guest.vcpu.get_debugregs().dr6 & DR6_BUS_LOCK
