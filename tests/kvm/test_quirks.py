"""Quirks: the right behaviour by default, upstream's where it is asked for; every one both ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kvm.emulator.devices import DEVICE, Vmm, map_device
from tests.kvm.guest import DATA, KERNEL_CODE, Guest, handle, long_mode
from trapline.arch import cpuid, msr
from trapline.arch.cpuid import CpuidEntry
from trapline.arch.registers import CR4_DE, RFLAGS_TF
from trapline.kvm import DebugRegs, Kvm, Quirk, abi, exits, open_kvm, quirks

LOCK_XADD, HLT, SPIN = b"\xf0\x0f\xc1\x07", b"\xf4", b"\xeb\xfe"
REPORT_DR6 = b"\x0f\x21\xf0" + HLT  # mov rax, dr6; hlt
INTEL, AMD = "sapphire-rapids", "zen5"
BLD = msr.DEBUGCTL_BLD


def without(entries: list[CpuidEntry], feature: cpuid.Feature) -> list[CpuidEntry]:
    """The same leaves, the feature hidden."""
    return [
        one.with_feature(feature, False)
        if (one.function, one.index) == (feature.function, feature.index)
        else one
        for one in entries
    ]


def run_wrmsr(guest: Guest, index: int, word: int) -> bool:
    """Whether the guest's WRMSR was taken; it starts with one and HLT."""
    handler = handle(guest, 13, HLT)
    regs = guest.vcpu.regs
    regs.rip, regs.rcx, regs.rax, regs.rdx = KERNEL_CODE, index, word, 0
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    return guest.vcpu.regs.rip != handler + 1


# -- one function a quirk: what is seen, as a value -----------------------------------------------


def dr6_after_a_step(kvm: Kvm) -> int:
    """A single step by the guest's own TF, where its DR6[11] was left 0."""
    guest = long_mode(kvm, b"\x90" + SPIN)
    guest.vcpu.set_debugregs(DebugRegs([0] * 4, 0xFFFF07F0, 0x400))
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.regs.rflags = 2 | RFLAGS_TF
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    return guest.vcpu.regs.rax


def dr6_for_the_debugger(kvm: Kvm) -> int:
    """A step over an instruction that locks the bus."""
    guest = long_mode(kvm, LOCK_XADD + HLT, cpl=3)
    guest.vcpu.set_msrs({msr.IA32_DEBUGCTL: BLD})
    guest.vcpu.regs.rdi = DATA + 0x3E
    guest.vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP)
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Debug)
    return exit.dr6


def bus_lock_detection(kvm: Kvm) -> tuple[bool, bool, int]:
    """In the supported CPUID; whether the guest may set BLD; how many MSRs userspace could set."""
    shown = cpuid.has(kvm.get_supported_cpuid(), cpuid.BUS_LOCK_DETECT)
    guest = long_mode(kvm, b"\x0f\x30" + HLT)
    taken = run_wrmsr(guest, msr.IA32_DEBUGCTL, BLD)
    return shown, taken, guest.vcpu.set_msrs({msr.IA32_DEBUGCTL: BLD})


def split_lock_ac(kvm: Kvm) -> tuple[bool, bool, bool, bool]:
    """In the supported CPUID; whether the guest may write 0x33; whether both MSRs are listed."""
    shown = cpuid.has(kvm.get_supported_cpuid(), cpuid.CORE_CAPABILITIES)
    guest = long_mode(kvm, b"\x0f\x30" + HLT)
    taken = run_wrmsr(guest, msr.TEST_CTRL, msr.TEST_CTRL_SPLIT_LOCK_AC)
    listed = msr.TEST_CTRL in kvm.get_msr_index_list()
    return shown, taken, listed, msr.IA32_CORE_CAPABILITIES in kvm.get_msr_feature_index_list()


def debugctl_listed(kvm: Kvm) -> bool:
    return msr.IA32_DEBUGCTL in kvm.get_msr_index_list()


def dr6_written_by_who_is_not_shown_the_feature(kvm: Kvm) -> int:
    """0 to DR6 and back, by a guest whose CPUID hides the processor's bus lock detection."""
    guest = long_mode(kvm, b"\x0f\x23\xf0\x0f\x21\xf3" + HLT)  # mov dr6, rax; mov rbx, dr6
    guest.vcpu.set_cpuid2(without(kvm.get_supported_cpuid(), cpuid.BUS_LOCK_DETECT))
    guest.vcpu.regs.rax = 0
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    return guest.vcpu.regs.rbx


def lock_on_device_memory(kvm: Kvm) -> tuple[int, int]:
    """LOCK XADD where no slot is, at CPL 3 with BLD: how many #DBs, and DR6."""
    guest = long_mode(kvm, LOCK_XADD + b"\x0f\x0b", cpl=3)
    map_device(guest)
    handle(guest, 1, b"\xff\xc3\x48\xcf")  # inc ebx; iretq
    handle(guest, 6, HLT)
    guest.vcpu.set_msrs({msr.IA32_DEBUGCTL: BLD})
    guest.vcpu.regs.rdi = DEVICE
    assert isinstance(Vmm(guest).run(), exits.Hlt)
    return guest.vcpu.regs.rbx, guest.vcpu.get_debugregs().dr6


def breakpoint_on_a_port(kvm: Kvm) -> int:
    """DR6 after OUT to a port that DR0 watches."""
    guest = long_mode(kvm, b"\xe6\x10" + b"\x0f\x0b")  # out 0x10, al; ud2
    handle(guest, 1, HLT)
    handle(guest, 6, HLT)
    sregs = guest.vcpu.get_sregs()
    sregs.cr4 |= CR4_DE
    guest.vcpu.set_sregs(sregs)
    guest.vcpu.set_debugregs(DebugRegs([0x10, 0, 0, 0], 0xFFFF0FF0, 0x402 | 2 << 16))
    assert isinstance(guest.vcpu.run(), exits.Io)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    return guest.vcpu.get_debugregs().dr6


def traps_held_for_a_stepped_cpuid(kvm: Kvm) -> int:
    """DR6 after MOV SS from watched memory, then CPUID, with TF."""
    guest = long_mode(kvm, b"\x8e\x17" + b"\x0f\xa2" + SPIN)  # mov ss, [rdi]; cpuid
    handle(guest, 1, HLT)
    guest.memory.write_quads(DATA, 0x10)
    guest.vcpu.set_debugregs(DebugRegs([0, DATA, 0, 0], 0xFFFF0FF0, 0x408 | 7 << 20))
    guest.vcpu.regs.rdi, guest.vcpu.regs.rflags = DATA, 2 | RFLAGS_TF
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    return guest.vcpu.get_debugregs().dr6


Look = Callable[[Kvm], object]
CASES: list[tuple[str, Quirk, Look, object, object]] = [
    (INTEL, Quirk.DR6_BUS_LOCK_SET, dr6_after_a_step, 0xFFFF47F0, 0xFFFF4FF0),
    # The payload comes from the saved DR6, in which the processor has left the bit.
    (AMD, Quirk.DR6_BUS_LOCK_SET, dr6_after_a_step, 0xFFFF47F0, 0xFFFF47F0),
    (INTEL, Quirk.DEBUG_EXIT_HIDES_CAUSES, dr6_for_the_debugger, 0xFFFF47F0, 0xFFFF4FF0),
    (AMD, Quirk.DEBUG_EXIT_HIDES_CAUSES, dr6_for_the_debugger, 0xFFFF47F0, 0xFFFF47F0),
    (AMD, Quirk.SVM_NO_BUS_LOCK_DETECT, bus_lock_detection, (True, True, 1), (False, False, 0)),
    (INTEL, Quirk.SVM_NO_BUS_LOCK_DETECT, bus_lock_detection, (True, True, 1), (True, True, 1)),
    (INTEL, Quirk.NO_SPLIT_LOCK_AC, split_lock_ac, (True,) * 4, (False,) * 4),
    (AMD, Quirk.NO_SPLIT_LOCK_AC, split_lock_ac, (False,) * 4, (False,) * 4),
    (INTEL, Quirk.DEBUGCTL_NOT_LISTED, debugctl_listed, True, False),
    (AMD, Quirk.DEBUGCTL_NOT_LISTED, debugctl_listed, True, False),
    (INTEL, Quirk.PORT_BREAKPOINTS_IGNORED, breakpoint_on_a_port, 0xFFFF0FF1, 0xFFFF0FF0),
    (AMD, Quirk.PORT_BREAKPOINTS_IGNORED, breakpoint_on_a_port, 0xFFFF0FF1, 0xFFFF0FF0),
    (
        INTEL,
        Quirk.STEP_LOSES_HELD_TRAPS,
        traps_held_for_a_stepped_cpuid,
        0xFFFF4FF2,
        0xFFFF4FF0,
    ),
    *[
        (
            cpu,
            Quirk.EMULATOR_LOCKS_NOTHING,
            lock_on_device_memory,
            (1, 0xFFFF07F0),
            (0, 0xFFFF0FF0),
        )
        for cpu in (INTEL, AMD)
    ],
    *[
        (
            cpu,
            Quirk.DR6_FIXED_BY_PROCESSOR,
            dr6_written_by_who_is_not_shown_the_feature,
            0xFFFF0FF0,
            0xFFFF07F0,
        )
        for cpu in (INTEL, AMD)
    ],
]


@pytest.mark.parametrize("engine", ["interp", "jit"])
@pytest.mark.parametrize(
    ("cpu", "quirk", "look", "right", "upstream"),
    CASES,
    ids=[f"{cpu}-{quirk.name}" for cpu, quirk, *_ in CASES],
)
def test_a_quirk_brings_upstreams_behaviour_back(
    engine: str, cpu: str, quirk: Quirk, look: Look, right: object, upstream: object
) -> None:
    assert look(open_kvm(cpu=cpu, engine=engine)) == right
    assert look(open_kvm(cpu=cpu, engine=engine, quirks=quirk)) == upstream


def test_every_quirk_is_looked_at() -> None:
    assert {quirk for _, quirk, *_ in CASES} == set(Quirk)


def test_the_page_about_quirks_names_every_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "quirks.md").read_text()
    assert [quirk.name for quirk in Quirk if f"| `{quirk.name}` |" not in page] == []


# -- the capability -------------------------------------------------------------------------------


def test_the_capability_names_the_valid_quirks() -> None:
    kvm = open_kvm()
    assert kvm.check_extension(quirks.CAPABILITY) == quirks.EVERY
    assert kvm.create_vm().check_extension(quirks.CAPABILITY) == quirks.EVERY


def test_quirks_that_are_none_are_einval() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        open_kvm().create_vm().enable_cap(quirks.CAPABILITY, quirks.EVERY + 1)


def test_a_quirk_enabled_on_a_vm_is_that_vms_and_its_vcpus() -> None:
    kvm = open_kvm()
    guest = long_mode(kvm, b"\x0f\x30" + HLT)
    assert run_wrmsr(guest, msr.TEST_CTRL, 0)
    guest.vm.enable_cap(quirks.CAPABILITY, Quirk.NO_SPLIT_LOCK_AC)
    guest.vm.enable_cap(quirks.CAPABILITY, Quirk.DR6_BUS_LOCK_SET)  # the first one stays
    assert not run_wrmsr(guest, msr.TEST_CTRL, 0)
    later = guest.vm.create_vcpu(1)
    assert later.set_msrs({msr.TEST_CTRL: 0}) == 0
    assert run_wrmsr(long_mode(kvm, b"\x0f\x30" + HLT), msr.TEST_CTRL, 0)


def test_the_hosts_kvm_knows_none(host: Kvm) -> None:
    assert host.check_extension(quirks.CAPABILITY) == 0


# -- exposure by the user's choice of CPUID -------------------------------------------------------


@pytest.mark.parametrize("engine", ["interp", "jit"])
def test_test_ctrl_is_there_for_guests_that_are_shown_it(engine: str) -> None:
    """CPUID.(7,0):EDX[30] makes 0xCF readable and 0x33 writable; #GP for others."""
    kvm = open_kvm(engine=engine)
    shown = kvm.get_supported_cpuid()
    for leaves, reads in ((shown, True), (without(shown, cpuid.CORE_CAPABILITIES), False)):
        guest = long_mode(kvm, b"\x0f\x32" + HLT)  # rdmsr
        handler = handle(guest, 13, HLT)
        guest.vcpu.set_cpuid2(leaves)
        regs = guest.vcpu.regs
        regs.rip, regs.rcx = KERNEL_CODE, msr.IA32_CORE_CAPABILITIES
        assert isinstance(guest.vcpu.run(), exits.Hlt)
        assert (regs.rip != handler + 1) == reads
        if reads:
            assert regs.rax == msr.CORE_CAPABILITIES_SPLIT_LOCK_AC
    assert guest.vcpu.get_msrs([msr.TEST_CTRL]) == {msr.TEST_CTRL: 0}  # by the host all the same


def test_ice_lake_has_test_ctrl_without_enumerating_it() -> None:
    """Linux goes by family and model there (split_lock_cpu_ids)."""
    kvm = open_kvm(cpu="icelake")
    leaves = kvm.get_supported_cpuid()
    assert not cpuid.has(leaves, cpuid.CORE_CAPABILITIES)
    guest = long_mode(kvm, b"\x0f\x30" + HLT)
    assert run_wrmsr(guest, msr.TEST_CTRL, msr.TEST_CTRL_SPLIT_LOCK_AC)
    other = [replace(one, eax=0x50654) if one.function == 1 else one for one in leaves]
    guest = long_mode(kvm, b"\x0f\x30" + HLT)
    guest.vcpu.set_cpuid2(other)
    assert not run_wrmsr(guest, msr.TEST_CTRL, 0)


def test_the_uc_lock_bit_needs_its_own_feature() -> None:
    """CPUID.(7,2):EDX[6] and MSR_TEST_CTRL bit 28."""
    kvm = open_kvm(cpu="max")
    guest = long_mode(kvm, b"\x0f\x30" + HLT)
    assert run_wrmsr(guest, msr.TEST_CTRL, msr.TEST_CTRL_UC_LOCK_DISABLE)
    guest = long_mode(kvm, b"\x0f\x30" + HLT)
    guest.vcpu.set_cpuid2(without(kvm.get_supported_cpuid(), cpuid.UC_LOCK_DISABLE))
    assert not run_wrmsr(guest, msr.TEST_CTRL, msr.TEST_CTRL_UC_LOCK_DISABLE)
    assert run_wrmsr(guest, msr.TEST_CTRL, msr.TEST_CTRL_SPLIT_LOCK_AC)


def test_feature_msrs_read_as_kvms_do(host: Kvm) -> None:
    """Every listed one can be read, on ours and on the host's; the list ends at the first that
    is not there."""
    for kvm in (open_kvm(), host):
        listed = kvm.get_msr_feature_index_list()
        assert list(kvm.get_feature_msrs(listed)) == listed
        assert kvm.get_feature_msrs([0x12345]) == {}
