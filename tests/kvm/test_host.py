"""The same calls on the host's KVM and on ours: the same answers.  Skipped where /dev/kvm does
not open; what PVM, a KVM without hardware support, answers in its own way is skipped with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

import pytest

from tests.kvm.conftest import is_pvm
from tests.kvm.guest import Guest, long_mode, real_mode
from trapline.arch import cpuid, msr, registers
from trapline.kvm import DebugRegs, Kvm, VcpuEvents, abi, exits, open_kvm
from trapline.kvm.abi import Capability

HLT, SPIN = b"\xf4", b"\xeb\xfe"
EVENT_FLAGS = abi.VCPUEVENT_VALID_NMI_PENDING | abi.VCPUEVENT_VALID_SHADOW
PAYLOAD = abi.VCPUEVENT_VALID_PAYLOAD

Question = Callable[[Kvm], object]


@pytest.fixture(params=["sapphire-rapids", "zen5"])
def ours(request: pytest.FixtureRequest) -> Kvm:
    return open_kvm(cpu=request.param)


def refusal(call: Callable[..., object], *args: object) -> int | None:
    """The errno of what was refused, None where it was taken."""
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return None


# -- capabilities ---------------------------------------------------------------------------------

# Not KVM_CAP_ENABLE_CAP (vCPUs') and what is a number of this host's: slots, vCPUs, synced parts.
SAME = (
    *(Capability.HLT, Capability.USER_MEMORY, Capability.SET_TSS_ADDR, Capability.EXT_CPUID),
    *(Capability.MP_STATE, Capability.DESTROY_MEMORY_REGION_WORKS),
    *(Capability.JOIN_MEMORY_REGIONS_WORKS, Capability.USER_NMI, Capability.SET_GUEST_DEBUG),
    *(Capability.SET_GUEST_DEBUG2, Capability.SET_IDENTITY_MAP_ADDR, Capability.VCPU_EVENTS),
    *(Capability.INTERNAL_ERROR_DATA, Capability.DEBUGREGS, Capability.X86_ROBUST_SINGLESTEP),
    *(Capability.ENABLE_CAP_VM, Capability.CHECK_EXTENSION_VM, Capability.XSAVE),
    *(Capability.XCRS, Capability.READONLY_MEM, Capability.IMMEDIATE_EXIT),
    *(Capability.EXCEPTION_PAYLOAD, Capability.X86_TRIPLE_FAULT_EVENT),
    *(Capability.GET_MSR_FEATURES, 0x7FFFFFFF),
)


@pytest.mark.parametrize("capability", SAME, ids=lambda one: getattr(one, "name", str(one)))
def test_capabilities_are_the_hosts(ours: Kvm, host: Kvm, capability: int) -> None:
    assert ours.check_extension(capability) == host.check_extension(capability)


def test_bus_lock_exits_are_there_with_both_modes_or_not_at_all(host: Kvm) -> None:
    assert host.check_extension(Capability.X86_BUS_LOCK_EXIT) in (0, 3)


@pytest.mark.parametrize("modes", [3, 4, 0, 1])
def test_the_modes_of_the_bus_lock_exit_that_are_refused(ours: Kvm, host: Kvm, modes: int) -> None:
    """KVM_ENABLE_CAP answers the same whether or not the processor has the exit."""

    def answer(kvm: Kvm) -> int | None:
        return refusal(kvm.create_vm().enable_cap, Capability.X86_BUS_LOCK_EXIT, modes)

    assert answer(ours) == answer(host)


# -- what a fresh vCPU holds, and what it takes ---------------------------------------------------


def fresh_debugregs(kvm: Kvm) -> object:
    return Guest(kvm).vcpu.get_debugregs()


def fresh_events(kvm: Kvm) -> object:
    return astuple(Guest(kvm).vcpu.get_vcpu_events())


def fresh_registers(kvm: Kvm) -> object:
    regs = Guest(kvm).vcpu.get_regs()
    regs.rdx = 0  # the processor's signature
    return regs


def fresh_sregs(kvm: Kvm) -> object:
    return Guest(kvm).vcpu.get_sregs()


def fresh_fpu(kvm: Kvm) -> object:
    """But for MXCSR, which KVM_GET_FPU leaves 0 and ours shows."""
    fpu = Guest(kvm).vcpu.get_fpu()
    fpu.mxcsr = 0
    return fpu


def debugregs_as_they_are_given(kvm: Kvm) -> object:
    guest = Guest(kvm)
    vcpu = guest.vcpu
    seen = []
    for dr6, dr7 in ((0, 0), (0xFFFF0FF0, 0x400), (0xFFFFFFFF, 0x2400), (0xFFFF07F1, 0x455)):
        vcpu.set_debugregs(DebugRegs([1 << 63, 2, 3, 1 << 47], dr6, dr7))
        seen.append(vcpu.get_debugregs())
    return seen


def debugregs_refused(kvm: Kvm) -> object:
    guest = Guest(kvm)
    vcpu = guest.vcpu
    bad = ((0, 0, 1), (1 << 32, 0, 0), (0, 1 << 32, 0), (0, 0, 1 << 31))
    return [
        refusal(vcpu.set_debugregs, DebugRegs([0] * 4, dr6, dr7, flags)) for dr6, dr7, flags in bad
    ]


def sregs_round_trip(kvm: Kvm) -> object:
    guest = long_mode(kvm, HLT, cpuid=False)
    vcpu = guest.vcpu
    sregs = vcpu.get_sregs()
    sregs.fs.base, sregs.gs.base = 0x7FFF00001000, 0xFFFF800000000000
    sregs.cr2, sregs.cr8, sregs.gdt.limit, sregs.idt.base = 0x1234, 7, 0x2F, 0x9000
    vcpu.set_sregs(sregs)
    return vcpu.get_sregs()


def sregs_refused(kvm: Kvm) -> object:
    changes = (
        {"efer": 0},
        {"cr4": 0},
        {"cr0": registers.CR0_PG},
        {"efer": registers.EFER_LME},
        {"cr0": 1 << 32 | registers.CR0_PE},
        {"cr4": 1 << 63},
    )
    answers = []
    for change in changes:
        guest = long_mode(kvm, HLT, cpuid=False)
        vcpu = guest.vcpu
        sregs = vcpu.get_sregs()
        for name, word in change.items():
            setattr(sregs, name, word)
        answers.append(refusal(vcpu.set_sregs, sregs))
    return answers


def _events(**fields: int) -> VcpuEvents:
    return VcpuEvents(**{"flags": EVENT_FLAGS, **fields})


EVENTS = {
    "nothing": _events(),
    "injected": _events(exception_injected=1, exception_nr=6),
    "with an error code": _events(
        exception_injected=1, exception_nr=13, exception_has_error_code=1, exception_error_code=8
    ),
    "pending": _events(exception_pending=1, exception_nr=1, flags=EVENT_FLAGS | PAYLOAD),
    "payload": _events(
        exception_pending=1, exception_nr=1, exception_has_payload=1, exception_payload=0x4801,
        flags=EVENT_FLAGS | PAYLOAD,
    ),
    "payload of what is injected": _events(
        exception_injected=1, exception_nr=1, exception_has_payload=1, exception_payload=0x4801,
        flags=EVENT_FLAGS | PAYLOAD,
    ),
    "both": _events(
        exception_injected=1, exception_pending=1, exception_nr=14, flags=EVENT_FLAGS | PAYLOAD
    ),
    "an interrupt": _events(interrupt_injected=1, interrupt_nr=0x40),
    "NMIs": _events(nmi_injected=1, nmi_pending=1, nmi_masked=1),
    "vector 2": _events(exception_injected=1, exception_nr=2),
    "vector 32": _events(exception_injected=1, exception_nr=32),
    "vector 32 of nothing": _events(exception_nr=32),
    "an unknown flag": _events(flags=1 << 8),
}  # fmt: skip


def events_taken(kvm: Kvm, events: VcpuEvents, has_payloads: bool) -> object:
    """The errno, or what KVM_GET_VCPU_EVENTS then shows, with DR6."""
    guest = long_mode(kvm, HLT, cpuid=False)
    if has_payloads:
        guest.vm.enable_cap(Capability.EXCEPTION_PAYLOAD, 1)
    refused = refusal(guest.vcpu.set_vcpu_events, events)
    if refused is not None:
        return refused
    seen = guest.vcpu.get_vcpu_events()
    if not seen.exception_injected and not seen.exception_pending:
        seen.exception_nr = 0  # of no exception
    return astuple(seen), guest.vcpu.get_debugregs().dr6


@pytest.mark.parametrize("has_payloads", [False, True])
@pytest.mark.parametrize("events", EVENTS.values(), ids=EVENTS.keys())
def test_events_are_taken_as_the_host_takes_them(
    ours: Kvm, host: Kvm, events: VcpuEvents, has_payloads: bool
) -> None:
    assert events_taken(ours, events, has_payloads) == events_taken(host, events, has_payloads)


def events_of_an_injected_debug_exception(kvm: Kvm) -> object:
    """KVM_GUESTDBG_INJECT_DB queues it; what KVM_GET_VCPU_EVENTS shows without the capability."""
    guest = long_mode(kvm, HLT, cpuid=False)
    guest.vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_INJECT_DB)
    seen = guest.vcpu.get_vcpu_events()
    return seen.exception_injected, seen.exception_nr, seen.exception_pending


def a_triple_fault_that_waits(kvm: Kvm) -> object:
    """KVM_CAP_X86_TRIPLE_FAULT_EVENT: refused before it is enabled, and taken then."""
    guest = long_mode(kvm, HLT, cpuid=False)
    events = _events(flags=EVENT_FLAGS | abi.VCPUEVENT_VALID_TRIPLE_FAULT, triple_fault_pending=1)
    before = refusal(guest.vcpu.set_vcpu_events, events)
    guest.vm.enable_cap(Capability.X86_TRIPLE_FAULT_EVENT, 1)
    guest.vcpu.set_vcpu_events(events)
    seen = guest.vcpu.get_vcpu_events()
    return before, seen.flags, seen.triple_fault_pending, type(guest.vcpu.run())


def guest_debug_refused(kvm: Kvm) -> object:
    guest = long_mode(kvm, HLT, cpuid=False)
    vcpu = guest.vcpu
    first = [refusal(vcpu.set_guest_debug, control) for control in (0, 1, 3, 1 << 30)]
    inject = abi.GUESTDBG_ENABLE | abi.GUESTDBG_INJECT_DB
    return first, [refusal(vcpu.set_guest_debug, inject) for _ in range(2)]


def debugregs_beside_a_debuggers(kvm: Kvm) -> object:
    guest = long_mode(kvm, HLT, cpuid=False)
    vcpu = guest.vcpu
    vcpu.set_debugregs(DebugRegs([1, 2, 3, 4], 0xFFFF0FF0, 0x401))
    control = abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_HW_BP
    vcpu.set_guest_debug(control, {0: 0x5555, 7: 0x402})
    lent = vcpu.get_debugregs()
    vcpu.set_debugregs(DebugRegs([5, 6, 7, 8], 0xFFFF4FF0, 0x404))
    inside = vcpu.get_debugregs()
    vcpu.set_guest_debug(0)
    return lent, inside, vcpu.get_debugregs()


def cpuid_round_trip(kvm: Kvm) -> object:
    guest = Guest(kvm)
    vcpu = guest.vcpu
    leaves = [
        cpuid.CpuidEntry(0, eax=7, ebx=0x756E6547, ecx=0x6C65746E, edx=0x49656E69),
        cpuid.CpuidEntry(1, eax=0x806F8, edx=1 << 5),
        cpuid.CpuidEntry(7, 0, 1, ecx=cpuid.BUS_LOCK_DETECT.mask),
    ]
    vcpu.set_cpuid2(leaves)
    return [(one.function, one.index, one.eax, one.ecx) for one in vcpu.get_cpuid2()]


def msrs_that_end_the_list(kvm: Kvm) -> object:
    guest = long_mode(kvm, HLT, cpuid=False)
    vcpu = guest.vcpu
    words = {msr.IA32_LSTAR: 0x1000, 0xDEAD: 1, msr.IA32_CSTAR: 2}
    return vcpu.set_msrs(words), vcpu.get_msrs(words)


def translations(kvm: Kvm) -> object:
    guest = long_mode(kvm, HLT, cpuid=False)
    vcpu = guest.vcpu
    return [
        (one.valid, one.physical_address if one.valid else 0)
        for one in map(vcpu.translate, (0, 0x1234, 0x3FFFFF, 0x400000, 1 << 39))
    ]


def a_real_mode_guest(kvm: Kvm) -> object:
    """INT n through the vector table, ports both ways, 16-bit arithmetic."""
    guest = real_mode(kvm, b"\xb8\x34\x12\xcd\x40\xe7\x10\xe4\x11\xf4")  # mov; int; out; in; hlt
    guest.memory.write(4 * 0x40, b"\x00\x20\x00\x00")
    guest.memory.write(0x2000, b"\x05\x11\x11\xcf")  # add ax, 0x1111; iret
    guest.vcpu.regs.rsp = 0x3000
    seen: list[object] = []
    for _ in range(2):
        exit = guest.vcpu.run()
        assert isinstance(exit, exits.Io)
        seen.append((exit.is_input, exit.port, exit.size, exit.count))
        if exit.is_input:
            exit.data[:] = b"\x77"
        else:
            seen.append(bytes(exit.data))
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    return seen, guest.vcpu.get_regs(), guest.vcpu.get_sregs().cs


def device_memory(kvm: Kvm) -> object:
    """A write and a read where no slot is: KVM_EXIT_MMIO both ways."""
    code = b"\x48\x89\x04\x25\x00\x00\x00\x40" + b"\x8b\x1c\x25\x04\x00\x00\x40" + HLT
    guest = long_mode(kvm, code, cpuid=False)
    guest.memory.write_quads(0x2008, 0x7007)
    guest.memory.write_quads(0x7000, 0x40000000 | 0x87)  # a 2 MiB page at 1 GiB
    guest.vcpu.regs.rax = 0x1122334455667788
    seen: list[object] = []
    for is_write in (True, False):
        exit = guest.vcpu.run()
        assert isinstance(exit, exits.Mmio)
        seen.append((exit.guest_physical, exit.size, exit.is_write, is_write))
        if exit.is_write:
            seen.append(bytes(exit.data))
        else:
            exit.data[:] = b"\xef\xbe\xad\xde"
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    return seen, guest.vcpu.regs.rbx


def breakpoints_in_a_debuggers_hand(kvm: Kvm) -> object:
    guest = real_mode(kvm, b"\x90\x90\x90\xf4")
    control = abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_HW_BP
    guest.vcpu.set_guest_debug(control, {1: 0x1002, 7: 0x400 | 1 << 3})
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Debug)
    return exit.exception, exit.pc, exit.dr6


def single_steps(kvm: Kvm) -> object:
    guest = long_mode(kvm, b"\x90\x31\xc0\x0f\xa2\xf4", cpuid=False)
    seen = []
    for _ in range(3):
        guest.vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP)
        exit = guest.vcpu.run()
        assert isinstance(exit, exits.Debug)
        seen.append((exit.exception, exit.pc, exit.dr6))
    return seen, guest.vcpu.get_debugregs().dr6


QUESTIONS: tuple[Question, ...] = (
    *(fresh_debugregs, fresh_events, fresh_registers, fresh_sregs, fresh_fpu),
    *(debugregs_as_they_are_given, debugregs_refused, debugregs_beside_a_debuggers),
    *(sregs_round_trip, sregs_refused, guest_debug_refused, cpuid_round_trip),
    *(msrs_that_end_the_list, translations, events_of_an_injected_debug_exception),
    a_triple_fault_that_waits,
    *(device_memory, a_real_mode_guest, breakpoints_in_a_debuggers_hand, single_steps),
)
NOT_PVMS: dict[Question, str] = {
    cpuid_round_trip: "KVM_GET_CPUID2 answers with more leaves than were set",
}


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.__name__)
def test_the_answer_is_the_hosts(ours: Kvm, host: Kvm, question: Question) -> None:
    if is_pvm(host) and question in NOT_PVMS:
        pytest.skip(f"PVM: {NOT_PVMS[question]}")
    assert question(ours) == question(host)
