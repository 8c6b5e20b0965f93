"""The bus lock's way to a guest on both vendors: the same guests, and where they must differ."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from tests.kvm.guest import DATA, KERNEL_CODE, USER_CODE, Guest, handle, long_mode
from tests.kvm.svm.conftest import AMD, ENGINES, INTEL
from trapline.arch import cpuid
from trapline.arch.msr import DEBUGCTL_BLD, IA32_DEBUGCTL, IA32_EFER
from trapline.arch.registers import EFER_SVME, RFLAGS_TF
from trapline.kvm import Kvm, abi, exits, open_kvm
from trapline.processor import BusLock, Outcome

LOCK_XADD = b"\xf0\x0f\xc1\x07"  # lock xadd [rdi], eax
HLT, SPIN = b"\xf4", b"\xeb\xfe"
SPLIT = DATA + 0x3E
REPORT_DR6 = b"\x0f\x21\xf0" + HLT  # mov rax, dr6; hlt
STEP = 2 | RFLAGS_TF
WATCH_1 = 0x400 | 1 << 2 | 0xD << 20  # breakpoint 1 on writes of 4 bytes
WATCH_0_3 = 0x400 | 1 | 1 << 6 | 0xD << 16 | 0xD << 28


def guest_of(kvm: Kvm, code: bytes, cpl: int = 3) -> Guest:
    """BLD set, and a handler that halts with DR6 in RAX."""
    guest = long_mode(kvm, code, cpl=cpl)
    assert guest.vcpu.set_msrs({IA32_DEBUGCTL: DEBUGCTL_BLD}) == 1
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.regs.rdi, guest.vcpu.regs.rax = SPLIT, 1
    return guest


def locked(guest: Guest) -> int:
    """The doubleword that the guest's locks add to."""
    return int.from_bytes(guest.memory.read(SPLIT, 4), "little")


@dataclass(frozen=True)
class Row:
    """One row of the reference's worked DR6 examples: where RIP is afterwards, and DR6."""

    code: bytes
    dr6: int
    rip: int = len(LOCK_XADD)
    rflags: int = 2
    dr7: int = 0x400
    before: int = 0xFFFF0FF0
    cpl: int = 3
    db: dict[int, int] = field(default_factory=dict)


ROWS = {
    "bus lock": Row(LOCK_XADD, 0xFFFF07F0),
    "and single step": Row(LOCK_XADD, 0xFFFF47F0, rflags=STEP),
    "and data breakpoint 1": Row(LOCK_XADD, 0xFFFF07F2, dr7=WATCH_1, db={1: DATA + 0x3C}),
    "and TF and breakpoints 0 and 3": Row(
        LOCK_XADD, 0xFFFF47F9, rflags=STEP, dr7=WATCH_0_3, db={0: DATA + 0x3C, 3: DATA + 0x40}
    ),
    "step after bit 11 was left 0": Row(b"\x90", 0xFFFF47F0, 1, rflags=STEP, before=0xFFFF07F0),
    "ICEBP": Row(b"\xf1", 0xFFFF0FF0, rip=1, cpl=0),
    "general detect": Row(b"\x0f\x21\xc0", 0xFFFF2FF0, rip=0, dr7=0x2400, cpl=0),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_the_worked_examples(named: tuple[str, Kvm], row: Row) -> None:
    _, kvm = named
    guest = guest_of(kvm, row.code + SPIN, row.cpl)
    debugregs = guest.vcpu.get_debugregs()
    for number, watched in row.db.items():
        debugregs.db[number] = watched
    debugregs.dr6, debugregs.dr7 = row.before, row.dr7
    guest.vcpu.set_debugregs(debugregs)
    guest.vcpu.regs.rflags = row.rflags
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == row.dr6
    start = USER_CODE if row.cpl else KERNEL_CODE
    assert guest.memory.quad(guest.vcpu.regs.rsp) == start + row.rip
    assert locked(guest) == (1 if row.code == LOCK_XADD else 0)
    assert guest.vcpu.get_debugregs().dr7 & 1 << 13 == 0


def test_a_guest_without_the_feature_gets_gp(named: tuple[str, Kvm]) -> None:
    _, kvm = named
    entries = kvm.get_supported_cpuid()
    assert cpuid.has(entries, cpuid.BUS_LOCK_DETECT)
    mask = ~cpuid.BUS_LOCK_DETECT.mask
    hidden = [replace(one, ecx=one.ecx & mask) if one.function == 7 else one for one in entries]
    for leaves, kept in ((hidden, 0), (entries, DEBUGCTL_BLD)):
        guest = long_mode(kvm, b"\x0f\x30" + HLT)  # wrmsr
        guest.vcpu.set_cpuid2(leaves)
        handler = handle(guest, 13, HLT)
        regs = guest.vcpu.regs
        regs.rcx, regs.rax, regs.rdx = IA32_DEBUGCTL, DEBUGCTL_BLD, 0
        assert isinstance(guest.vcpu.run(), exits.Hlt)
        assert (guest.vcpu.regs.rip == handler + 1) == (not kept)
        assert guest.vcpu.get_msrs([IA32_DEBUGCTL]) == {IA32_DEBUGCTL: kept}


def test_a_debugger_sees_the_bus_lock(named: tuple[str, Kvm]) -> None:
    """By SVM's saved DR6 as by VMX's exit qualification."""
    _, kvm = named
    guest = guest_of(kvm, LOCK_XADD + SPIN)
    guest.vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP)
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Debug)
    assert (exit.exception, exit.pc) == (1, USER_CODE + len(LOCK_XADD))
    assert exit.dr6 == 0xFFFF47F0
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF0FF0  # the guest's own was not touched


# -- bus-lock exits -----------------------------------------------------------------------------


def exiting_guest(kvm: Kvm, code: bytes, cpl: int = 0) -> Guest:
    """A guest whose vCPU was made after KVM_CAP_X86_BUS_LOCK_EXIT was enabled on its VM."""

    class Enabling:
        """The hypervisor, but for the capability of each VM it makes."""

        def __getattr__(self, name: str) -> object:
            return getattr(kvm, name)

        def create_vm(self) -> object:
            vm = kvm.create_vm()
            vm.enable_cap(abi.Capability.X86_BUS_LOCK_EXIT, abi.BUS_LOCK_DETECTION_EXIT)
            return vm

    guest = long_mode(Enabling(), code, cpl=cpl)  # type: ignore[arg-type]
    guest.vcpu.regs.rdi, guest.vcpu.regs.rax = SPLIT, 1
    return guest


def test_intel_exits_after_the_lock_and_amd_before(named: tuple[str, Kvm]) -> None:
    cpu, kvm = named
    guest = exiting_guest(kvm, LOCK_XADD + HLT)
    assert isinstance(guest.vcpu.run(), exits.X86BusLock)
    assert guest.vcpu.flags == abi.RUN_X86_BUS_LOCK
    is_fault = cpu == AMD
    assert guest.vcpu.regs.rip == KERNEL_CODE + (0 if is_fault else len(LOCK_XADD))
    assert locked(guest) == (0 if is_fault else 1)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.flags == 0
    assert locked(guest) == 1


@pytest.mark.parametrize("cpl", [0, 3])
def test_every_lock_exits_once_and_is_done_once(software: Kvm, cpl: int) -> None:
    loop = b"\xf0\xff\x07" + b"\xe2\xfb" + b"\x0f\x0b"  # lock inc dword [rdi]; loop; ud2
    guest = exiting_guest(software, loop, cpl)
    handle(guest, 6, HLT)
    guest.vcpu.regs.rcx = 50
    for count in range(50):
        assert isinstance(guest.vcpu.run(), exits.X86BusLock)
        assert locked(guest) == count
        assert guest.vcpu.regs.rip == (USER_CODE if cpl else KERNEL_CODE)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert locked(guest) == 50


def test_a_guest_sent_elsewhere_may_not_lock_for_free(software: Kvm) -> None:
    """complete_userspace_buslock(): the counter is for the same RIP only."""
    guest = exiting_guest(software, LOCK_XADD + LOCK_XADD + HLT)
    assert isinstance(guest.vcpu.run(), exits.X86BusLock)
    guest.vcpu.regs.rip = KERNEL_CODE + len(LOCK_XADD)
    assert isinstance(guest.vcpu.run(), exits.X86BusLock)
    assert guest.vcpu.regs.rip == KERNEL_CODE + len(LOCK_XADD)
    assert locked(guest) == 0
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert locked(guest) == 1


def test_the_lock_that_passes_still_raises_the_debug_exception(software: Kvm) -> None:
    guest = exiting_guest(software, LOCK_XADD + SPIN, cpl=3)
    guest.vcpu.set_msrs({IA32_DEBUGCTL: DEBUGCTL_BLD})
    handle(guest, 1, REPORT_DR6)
    assert isinstance(guest.vcpu.run(), exits.X86BusLock)
    assert (guest.vcpu.regs.rip, locked(guest)) == (USER_CODE, 0)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert (guest.vcpu.regs.rax, locked(guest)) == (0xFFFF07F0, 1)


@pytest.mark.parametrize(("cpu", "modes"), [(INTEL, 3), ("zen4", 0), (AMD, 3)])
def test_the_capability_is_the_processors(cpu: str, modes: int) -> None:
    assert open_kvm(cpu=cpu).check_extension(abi.Capability.X86_BUS_LOCK_EXIT) == modes


class Recorder:
    """An observer that keeps every bus lock."""

    def __init__(self) -> None:
        self.locks: list[tuple[BusLock, Outcome]] = []

    def bus_lock(self, lock: BusLock, outcome: Outcome) -> None:
        self.locks.append((lock, outcome))

    def bus_lock_total(self, *total: object) -> None:
        raise AssertionError(total)

    def undefined(self, rip: int, code: bytes, text: str) -> None:
        raise AssertionError(text)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_observer_sees_a_lock_once_when_it_is_done(engine: str) -> None:
    recorder = Recorder()
    guest = exiting_guest(open_kvm(cpu=AMD, engine=engine, observer=recorder), LOCK_XADD + HLT)
    assert isinstance(guest.vcpu.run(), exits.X86BusLock)
    assert not recorder.locks
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    ((lock, outcome),) = recorder.locks
    assert (lock.rip, lock.linear, outcome) == (KERNEL_CODE, SPLIT, Outcome.NONE)


# -- what a guest does not see ------------------------------------------------------------------


def test_zen4_refuses_bld_even_to_userspace() -> None:
    kvm = open_kvm(cpu="zen4")
    assert not cpuid.has(kvm.get_supported_cpuid(), cpuid.BUS_LOCK_DETECT)
    assert long_mode(kvm, HLT).vcpu.set_msrs({IA32_DEBUGCTL: DEBUGCTL_BLD}) == 0


def test_a_guest_sees_no_svm(software: Kvm) -> None:
    entries = software.get_supported_cpuid()
    assert not cpuid.has(entries, cpuid.SVM)
    leaf = cpuid.find(entries, 0x8000000A)
    assert leaf is not None
    assert (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) == (0, 0, 0, 0)
    guest = long_mode(software, b"\x0f\x32" + HLT)  # rdmsr
    guest.vcpu.regs.rcx = IA32_EFER
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert not guest.vcpu.regs.rax & EFER_SVME
    assert not guest.vcpu.get_sregs().efer & EFER_SVME
    assert guest.vcpu.set_msrs({IA32_EFER: EFER_SVME}) == 0


def test_an_injected_interrupt_does_not_ask_for_if(software: Kvm) -> None:
    """EVENTINJ is taken whatever RFLAGS.IF says, where VMX refuses the entry."""
    guest = long_mode(software, HLT)
    at = handle(guest, 0x40, HLT)
    guest.vcpu.interrupt(0x40)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == at + 1
