"""The guest's debug state on both vendors: DEBUGCTL, DR6 across exits, MOV DR, blocked traps."""

from __future__ import annotations

import pytest

from tests.kvm.guest import DATA, KERNEL_CODE, USER_CODE, Guest, handle, long_mode
from trapline.arch import cpuid, msr
from trapline.arch.registers import CR4_DE, RFLAGS_TF
from trapline.kvm import DebugRegs, Kvm, abi, exits, open_kvm

LOCK_XADD, NOP, HLT, SPIN = b"\xf0\x0f\xc1\x07", b"\x90", b"\xf4", b"\xeb\xfe"
WRMSR, RDMSR, CPUID = b"\x0f\x30", b"\x0f\x32", b"\x0f\xa2"
REPORT_DR6 = b"\x0f\x21\xf0" + HLT  # mov rax, dr6; hlt
BLD, LBR, BTF = msr.DEBUGCTL_BLD, msr.DEBUGCTL_LBR, msr.DEBUGCTL_BTF
INTEL, AMD = "sapphire-rapids", "zen5"


@pytest.fixture(params=[INTEL, AMD])
def vendor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["interp", "jit"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def kvm(vendor: str, engine: str) -> Kvm:
    return open_kvm(cpu=vendor, engine=engine)


def locking(kvm: Kvm, code: bytes = LOCK_XADD, dr6: int = 0xFFFF0FF0) -> Guest:
    """CPL 3 with BLD, and a handler that halts with DR6 in RAX."""
    guest = long_mode(kvm, code + SPIN, cpl=3)
    assert guest.vcpu.set_msrs({msr.IA32_DEBUGCTL: BLD}) == 1
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.set_debugregs(DebugRegs([0] * 4, dr6, 0x400))
    guest.vcpu.regs.rdi, guest.vcpu.regs.rax = DATA + 0x3E, 1
    return guest


def debugctl(guest: Guest) -> int:
    return guest.vcpu.get_msrs([msr.IA32_DEBUGCTL])[msr.IA32_DEBUGCTL]


# -- DR6 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (0xFFFF0FF0, 0xFFFF07F0),
        (0xFFFF07F0, 0xFFFF07F0),
        (0xFFFF0FFF, 0xFFFF07F0),  # B0-B3 are those of this exception
        (0xFFFFEFF5, 0xFFFFE7F0),  # BD, BS and BT gather until software clears them
    ],
)
def test_what_software_left_in_dr6(kvm: Kvm, before: int, after: int) -> None:
    guest = locking(kvm, dr6=before)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == after
    assert guest.vcpu.get_debugregs().dr6 == after


def test_dr6_and_dr7_stand_across_other_exits(kvm: Kvm) -> None:
    """CPUID, port output and HLT leave the guest; VMX and SVM keep these two in other places."""
    guest = long_mode(kvm, CPUID + b"\xe6\x10" + CPUID + b"\x0f\x21\xf6\x0f\x21\xff" + HLT)
    guest.vcpu.set_debugregs(DebugRegs([1, 2, 3, 4], 0xFFFF47F5, 0x455))
    assert isinstance(guest.vcpu.run(), exits.Io)
    assert guest.vcpu.get_debugregs() == DebugRegs([1, 2, 3, 4], 0xFFFF47F5, 0x455)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert (guest.vcpu.regs.rsi, guest.vcpu.regs.rdi) == (0xFFFF47F5, 0x455)


def test_a_step_over_an_instruction_the_hypervisor_does(kvm: Kvm) -> None:
    """kvm_skip_emulated_instruction(): the same #DB as for one the processor does."""
    for code in (NOP, CPUID):
        guest = long_mode(kvm, code + SPIN)
        handle(guest, 1, REPORT_DR6)
        guest.vcpu.regs.rflags = 2 | RFLAGS_TF
        assert isinstance(guest.vcpu.run(), exits.Hlt)
        assert guest.vcpu.regs.rax == 0xFFFF4FF0
        assert guest.memory.quad(guest.vcpu.regs.rsp) == KERNEL_CODE + len(code)
        assert guest.memory.quad(guest.vcpu.regs.rsp + 16) & RFLAGS_TF


def test_the_debug_exception_clears_gd_for_its_handler(kvm: Kvm) -> None:
    """Injection does not; the hypervisor does it in the processor's place."""
    guest = locking(kvm)
    guest.vcpu.set_debugregs(DebugRegs([0] * 4, 0xFFFF0FF0, 0x2400))
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF07F0
    assert guest.vcpu.get_debugregs().dr7 == 0x400


# -- MOV DR ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("debugged", [False, True])
def test_dr4_and_dr5_are_dr6_and_dr7_unless_cr4_de(kvm: Kvm, debugged: bool) -> None:
    """The processor's own, and handle_dr()'s and dr_interception()'s."""
    guest = long_mode(kvm, b"\x0f\x21\xe3\x0f\x21\xe9" + HLT)  # mov rbx, dr4; mov rcx, dr5
    undefined = handle(guest, 6, HLT)
    guest.vcpu.set_debugregs(DebugRegs([0] * 4, 0xFFFF4FF0, 0x401))
    if debugged:
        guest.vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_HW_BP, {7: 0x400})
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert (guest.vcpu.regs.rbx, guest.vcpu.regs.rcx) == (0xFFFF4FF0, 0x401)
    sregs = guest.vcpu.get_sregs()
    sregs.cr4 |= CR4_DE
    guest.vcpu.set_sregs(sregs)
    guest.vcpu.regs.rip = KERNEL_CODE
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == undefined + 1


@pytest.mark.parametrize("debugged", [False, True])
@pytest.mark.parametrize("code", [b"\x0f\x21\xf0", b"\x0f\x23\xf0"])
def test_mov_dr_at_cpl_3_is_gp_before_general_detect(kvm: Kvm, code: bytes, debugged: bool) -> None:
    guest = long_mode(kvm, code + SPIN, cpl=3)
    handle(guest, 13, HLT)
    guest.vcpu.set_debugregs(DebugRegs([0] * 4, 0xFFFF0FF0, 0x2400))
    if debugged:
        guest.vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_SW_BP)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.memory.quad(guest.vcpu.regs.rsp + 8) == USER_CODE
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF0FF0


# -- TF where STI or MOV SS blocks ----------------------------------------------------------------


def test_a_single_step_over_sti_traps_at_once(kvm: Kvm) -> None:
    """The exit finds blocking by STI and TF: VMX's entry wants BS pending then (b9bed78e2fa9)."""
    guest = long_mode(kvm, b"\xfb" + NOP + SPIN)
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.regs.rflags = 2 | RFLAGS_TF
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF4FF0
    assert guest.memory.quad(guest.vcpu.regs.rsp) == KERNEL_CODE + 1


def test_mov_ss_holds_the_step_for_the_next_instruction(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x8e\xd0" + NOP + SPIN)
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.regs.rax, guest.vcpu.regs.rflags = 0x10, 2 | RFLAGS_TF
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF4FF0
    assert guest.memory.quad(guest.vcpu.regs.rsp) == KERNEL_CODE + 3


def test_a_fault_in_the_shadow_of_mov_ss_with_tf(kvm: Kvm) -> None:
    """General detect right after MOV SS: TF and the shadow together at the exit."""
    guest = long_mode(kvm, b"\x8e\xd0" + b"\x0f\x21\xc3" + SPIN)  # mov ss, eax; mov rbx, dr0
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.set_debugregs(DebugRegs([0] * 4, 0xFFFF0FF0, 0x2400))
    guest.vcpu.regs.rax, guest.vcpu.regs.rflags = 0x10, 2 | RFLAGS_TF
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF2FF0
    assert guest.memory.quad(guest.vcpu.regs.rsp) == KERNEL_CODE + 2


def test_int1_in_the_shadow_of_mov_ss_with_tf(engine: str) -> None:
    """VMX: the injection drops what MOV SS held back (SDM 3C, "Delivery of Pending Debug
    Exceptions after VM Entry").  SVM has no place to keep it, and does not intercept INT1."""
    guest = long_mode(
        open_kvm(cpu=INTEL, engine=engine), b"\x8e\xd0" + b"\xf1" + SPIN
    )  # mov ss, eax; int1
    handle(guest, 1, REPORT_DR6)
    guest.vcpu.regs.rax, guest.vcpu.regs.rflags = 0x10, 2 | RFLAGS_TF
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.memory.quad(guest.vcpu.regs.rsp) == KERNEL_CODE + 3


# -- DEBUGCTL -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "kept"), [(BLD, BLD), (LBR, LBR), (BLD | BTF | LBR, BLD | LBR)])
def test_on_amd_lbr_is_virtualized_and_btf_dropped(engine: str, word: int, kept: int) -> None:
    """svm_set_msr(), with BLD added to the bits it takes; the LBR MSRs read as 0."""
    guest = long_mode(open_kvm(cpu=AMD, engine=engine), WRMSR + b"\xb1\xdb" + RDMSR + HLT)
    regs = guest.vcpu.regs
    regs.rcx, regs.rax, regs.rdx = msr.IA32_DEBUGCTL, word, 0
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert debugctl(guest) == kept
    assert (regs.rcx, regs.rax) == (msr.LAST_BRANCH_FROM_IP, 0)


@pytest.mark.parametrize("word", [1 << 3, 1 << 6, 1 << 15, 1 << 32])
def test_other_bits_of_debugctl_are_gp(kvm: Kvm, word: int) -> None:
    guest = long_mode(kvm, WRMSR + HLT)
    handler = handle(guest, 13, HLT)
    regs = guest.vcpu.regs
    regs.rcx, regs.rax, regs.rdx = msr.IA32_DEBUGCTL, word & 0xFFFFFFFF, word >> 32
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert regs.rip == handler + 1
    assert guest.vcpu.set_msrs({msr.IA32_DEBUGCTL: word}) == 0
    assert debugctl(guest) == 0


def test_a_debug_exception_clears_lbr_and_leaves_bld_on_amd(engine: str) -> None:
    """#DB intercepted: the saved DEBUGCTL is as the processor changed it."""
    guest = locking(open_kvm(cpu=AMD, engine=engine))
    guest.vcpu.set_msrs({msr.IA32_DEBUGCTL: BLD | LBR})
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF07F0
    assert debugctl(guest) == BLD


def test_bld_is_not_cleared_by_the_exception(kvm: Kvm) -> None:
    """Two locks, two exceptions; the handler only sets DR6[11] again."""
    guest = locking(kvm, LOCK_XADD * 2 + b"\x0f\x0b")
    handle(guest, 6, HLT)
    reset = b"\x50\xff\xc3\xb8\xf0\x0f\xff\xff\x0f\x23\xf0\x58\x48\xcf"  # inc ebx; mov dr6, ...
    handle(guest, 1, reset)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rbx == 2
    assert debugctl(guest) == BLD
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF0FF0


def test_debugctl_is_each_vcpus_own(kvm: Kvm) -> None:
    guest = locking(kvm)
    other = guest.vm.create_vcpu(1)
    assert other.get_msrs([msr.IA32_DEBUGCTL]) == {msr.IA32_DEBUGCTL: 0}
    other.set_cpuid2(kvm.get_supported_cpuid())
    other.set_sregs(guest.vcpu.get_sregs())
    other.set_regs(guest.vcpu.get_regs())
    guest.memory.write(USER_CODE + len(LOCK_XADD), b"\x0f\x0b")
    handle(guest, 6, HLT)
    assert isinstance(other.run(), exits.Hlt)
    assert other.get_debugregs().dr6 == 0xFFFF0FF0
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF07F0


def test_without_lbr_virtualization_an_amd_guest_has_no_debugctl_of_its_own() -> None:
    kvm = open_kvm(cpu="zen5,-lbrv")
    assert not cpuid.has(kvm.get_supported_cpuid(), cpuid.BUS_LOCK_DETECT)
    guest = long_mode(kvm, HLT)
    assert guest.vcpu.set_msrs({msr.IA32_DEBUGCTL: BLD}) == 0
    assert guest.vcpu.set_msrs({msr.IA32_DEBUGCTL: LBR}) == 1  # ignored, as upstream
    assert debugctl(guest) == 0


def test_debugctl_moves_with_the_listed_msrs(kvm: Kvm) -> None:
    """What KVM_GET_MSR_INDEX_LIST names is enough to go on elsewhere with BLD."""
    guest = locking(kvm)
    saved = guest.vcpu.get_msrs(kvm.get_msr_index_list())
    assert saved[msr.IA32_DEBUGCTL] == BLD
    other = long_mode(kvm, LOCK_XADD + SPIN, cpl=3)
    handle(other, 1, REPORT_DR6)
    other.vcpu.regs.rdi = DATA + 0x3E
    assert other.vcpu.set_msrs(saved) == len(saved)
    assert isinstance(other.vcpu.run(), exits.Hlt)
    assert other.vcpu.regs.rax == 0xFFFF07F0


# -- pending exceptions and userspace -------------------------------------------------------------


def test_a_pending_payload_moves_to_another_vcpu(kvm: Kvm) -> None:
    """KVM_CAP_EXCEPTION_PAYLOAD on both ends: DR6 changes where the exception is delivered."""
    source, target = locking(kvm), locking(kvm)
    for guest in (source, target):
        guest.vm.enable_cap(abi.Capability.EXCEPTION_PAYLOAD, 1)
    events = source.vcpu.get_vcpu_events()
    events.exception_pending, events.exception_nr = 1, 1
    events.exception_has_payload, events.exception_payload = 1, 0x4802
    events.flags |= abi.VCPUEVENT_VALID_PAYLOAD
    source.vcpu.set_vcpu_events(events)
    target.vcpu.set_vcpu_events(source.vcpu.get_vcpu_events())
    assert target.vcpu.get_debugregs().dr6 == 0xFFFF0FF0
    assert isinstance(target.vcpu.run(), exits.Hlt)
    assert target.vcpu.regs.rax == 0xFFFF47F2
    assert target.memory.quad(target.vcpu.regs.rsp) == USER_CODE


def test_pending_wins_over_injected(kvm: Kvm) -> None:
    guest = long_mode(kvm, HLT)
    guest.vm.enable_cap(abi.Capability.EXCEPTION_PAYLOAD, 1)
    events = guest.vcpu.get_vcpu_events()
    events.exception_pending = events.exception_injected = 1
    events.exception_nr, events.flags = 1, events.flags | abi.VCPUEVENT_VALID_PAYLOAD
    guest.vcpu.set_vcpu_events(events)
    seen = guest.vcpu.get_vcpu_events()
    assert (seen.exception_pending, seen.exception_injected) == (1, 0)


def test_an_injected_exception_has_no_payload_to_deliver(kvm: Kvm) -> None:
    """Injected is past its payload: DR6 stays."""
    guest = locking(kvm)
    events = guest.vcpu.get_vcpu_events()
    events.exception_injected, events.exception_nr = 1, 1
    guest.vcpu.set_vcpu_events(events)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF0FF0


@pytest.mark.parametrize(("flags", "dr6", "dr7"), [(1, 0, 0), (0, 1 << 32, 0), (0, 0, 1 << 32)])
def test_set_debugregs_refuses_what_kvm_refuses(kvm: Kvm, flags: int, dr6: int, dr7: int) -> None:
    guest = long_mode(kvm, HLT)
    with pytest.raises(OSError, match="Invalid argument"):
        guest.vcpu.set_debugregs(DebugRegs([0] * 4, dr6, dr7, flags))
