"""The vCPU over a vendor made of a script: its loop, its events, its registers."""

from __future__ import annotations

import errno
import threading
from typing import Any

import pytest

from tests.kvm.scripted.backend import IF, STI, ScriptedBackend
from tests.kvm.scripted.bench import Bench
from trapline.arch import cpuid
from trapline.arch.exception import Vector
from trapline.kvm import DebugRegs, VcpuEvents, abi, exits
from trapline.kvm.backend import Answer
from trapline.kvm.vcpu import SoftwareVcpu

GD, BS, BUS_LOCK = 1 << 13, 1 << 14, 1 << 11
DEBUGCTL, LSTAR, TSC = 0x1D9, 0xC0000082, 0x10
TF, RF = 1 << 8, 1 << 16


# -- the loop --------------------------------------------------------------------------------------


def test_the_guest_is_entered_until_an_exit_is_for_the_vmm(bench: Bench) -> None:
    assert bench.run(None, None, exits.Hlt()) == exits.Hlt()
    assert bench.asked() == [("enter",)] * 3


def test_a_kick_ends_the_run_and_is_passed_on(bench: Bench) -> None:
    bench.vcpu.kick()
    assert bench.run() == exits.Interrupted()

    def kicked(vcpu: SoftwareVcpu, backend: ScriptedBackend) -> Answer:
        thread = threading.Thread(target=vcpu.kick)
        thread.start()
        thread.join()
        return None

    assert bench.run(kicked) == exits.Interrupted()
    assert bench.asked() == [("kick",), ("enter",), ("kick",)]
    assert bench.run(exits.Hlt()) == exits.Hlt()
    assert bench.backend.kick_places[0] in bench.vcpu.kick_places


def test_what_an_exit_left_to_do_is_done_first(bench: Bench) -> None:
    done: list[int] = []
    port = exits.Io(abi.EXIT_IO_IN, 1, 0x60, 1, bytearray(1))

    def input_(vcpu: SoftwareVcpu, backend: ScriptedBackend) -> Answer:
        def complete() -> Answer:
            done.append(port.data[0])
            return exits.Debug(1, 0, 0, 0) if port.data[0] == 2 else None

        vcpu.complete = complete
        return port

    assert bench.run(input_) is port
    assert done == []
    port.data[0] = 1
    assert bench.run(exits.Hlt()) == exits.Hlt()
    assert bench.run(input_) is port
    port.data[0] = 2
    assert bench.run() == exits.Debug(1, 0, 0, 0)  # and the guest has not run
    assert done == [1, 2]


def test_flags_are_of_one_run(bench: Bench) -> None:
    def lock(vcpu: SoftwareVcpu, backend: ScriptedBackend) -> Answer:
        vcpu.flags |= abi.RUN_X86_BUS_LOCK
        return exits.X86BusLock()

    assert bench.run(lock) == exits.X86BusLock()
    assert bench.vcpu.flags == abi.RUN_X86_BUS_LOCK
    bench.run(exits.Hlt())
    assert bench.vcpu.flags == 0


@pytest.mark.parametrize("vcpu_id", [-1, 100000])
def test_odd_vcpu_numbers_are_refused(bench: Bench, vcpu_id: int) -> None:
    with pytest.raises(OSError):
        bench.vm.create_vcpu(vcpu_id)
    with pytest.raises(OSError) as refused:
        bench.vm.create_vcpu(0)
    assert refused.value.errno == errno.EEXIST


# -- events ----------------------------------------------------------------------------------------


def injected(asked: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """What was given to the processor, as short as can be, and the entries between."""
    short = []
    for one in asked:
        if one[0] == "exception":
            queue = one[1]
            short.append((queue.vector, queue.error_code if queue.has_error_code else None))
        elif one[0] in ("enter", "nmi", "interrupt"):
            short.append(one)
    return short


def test_a_queued_exception_is_injected_once(bench: Bench) -> None:
    bench.vcpu.events.queue(Vector.GP, 0x18)
    bench.run(None, exits.Hlt())
    assert injected(bench.asked()) == [(13, 0x18), ("enter",), ("enter",)]
    assert bench.backend.state.rflags & RF  # a fault's frame has it


def test_an_exception_that_did_not_arrive_is_injected_again(bench: Bench) -> None:
    def failed(vcpu: SoftwareVcpu, backend: ScriptedBackend) -> Answer:
        vcpu.events.requeue(Vector.GP, 0x18)
        return None

    bench.vcpu.events.queue(Vector.GP, 0x18)
    bench.run(failed, exits.Hlt())
    assert injected(bench.asked()) == [(13, 0x18), ("enter",), (13, 0x18), ("enter",)]


def test_exceptions_in_exceptions_become_double_and_triple_faults(bench: Bench) -> None:
    events = bench.vcpu.events
    events.queue(Vector.GP, 0)
    events.queue(Vector.NP, 8)
    bench.run(exits.Hlt())
    assert injected(bench.asked()) == [(8, 0), ("enter",)]
    events.queue(Vector.DF, 0)
    events.queue(Vector.GP, 0)
    assert bench.run() == exits.Shutdown()
    assert bench.asked() == []


def test_a_page_fault_brings_cr2_along(bench: Bench) -> None:
    bench.vcpu.events.queue(Vector.PF, 2, 0xDEADBEEF)
    bench.run(exits.Hlt())
    assert bench.backend.state.cr2 == 0xDEADBEEF


@pytest.mark.parametrize(
    ("payload", "dr6"),
    [(BS, 0xFFFF4FF0), (BUS_LOCK, 0xFFFF07F0), (BS | BUS_LOCK, 0xFFFF47F0), (2, 0xFFFF0FF2)],
)
def test_a_debug_exceptions_payload_goes_into_dr6(bench: Bench, payload: int, dr6: int) -> None:
    bench.vcpu.set_cpuid2(bench.kvm.get_supported_cpuid())
    bench.vcpu.set_debugregs(DebugRegs([0, 0, 0, 0], 0xFFFF0FF0, 0x400 | GD))
    bench.asked()
    bench.vcpu.events.queue(Vector.DB, payload=payload)
    bench.run(exits.Hlt())
    asked = bench.asked()
    assert bench.backend.state.dr6 == dr6
    assert ("breakpoints", (0, 0, 0, 0), 0x400) in asked  # GD does not stay
    assert injected(asked) == [(1, None), ("enter",)]


def test_userspace_sees_what_waits_and_can_take_it_elsewhere(bench: Bench) -> None:
    """KVM_CAP_EXCEPTION_PAYLOAD: KVM_SET_VCPU_EVENTS of what KVM_GET_VCPU_EVENTS said."""
    bench.vm.enable_cap(abi.Capability.EXCEPTION_PAYLOAD, 1)
    events = VcpuEvents(
        exception_pending=True,
        exception_nr=1,
        exception_has_payload=True,
        exception_payload=BUS_LOCK,
        flags=abi.VCPUEVENT_VALID_PAYLOAD | abi.VCPUEVENT_VALID_SHADOW,
        interrupt_shadow=STI,
        nmi_masked=True,
    )
    bench.vcpu.set_vcpu_events(events)
    seen = bench.vcpu.get_vcpu_events()
    assert (seen.exception_pending, seen.exception_payload) == (True, BUS_LOCK)
    assert (seen.interrupt_shadow, seen.nmi_masked) == (STI, True)
    assert bench.backend.shadow == STI
    bench.run(exits.Hlt())
    assert bench.backend.state.dr6 & BUS_LOCK == 0
    assert not bench.vcpu.get_vcpu_events().exception_pending


def test_an_nmi_waits_for_its_window(bench: Bench) -> None:
    bench.backend.nmi_masked = True
    bench.vcpu.nmi()
    bench.run(exits.Hlt())
    assert bench.asked() == [("nmi window", True), ("enter",)]
    bench.backend.nmi_masked = False
    bench.run(exits.Hlt())
    assert bench.asked() == [("nmi",), ("enter",)]


def test_two_nmis_follow_each_other(bench: Bench) -> None:
    def masks(vcpu: SoftwareVcpu, backend: ScriptedBackend) -> Answer:
        backend.nmi_masked = True
        return None

    def unmasks(vcpu: SoftwareVcpu, backend: ScriptedBackend) -> Answer:
        backend.nmi_masked = False
        vcpu.events.waiting = True
        return None

    for _ in range(3):
        bench.vcpu.nmi()
    bench.run(masks, unmasks, exits.Hlt())
    assert injected(bench.asked()) == [("nmi",), ("enter",), ("enter",), ("nmi",), ("enter",)]


def test_an_exception_goes_before_an_nmi(bench: Bench) -> None:
    bench.vcpu.nmi()
    bench.vcpu.events.queue(Vector.UD)
    bench.run(None, exits.Hlt())
    assert injected(bench.asked()) == [(6, None), ("enter",), ("nmi",), ("enter",)]


def test_an_interrupt_of_the_vmms_and_its_window(bench: Bench) -> None:
    vcpu, state = bench.vcpu, bench.backend.state
    vcpu.interrupt(0x41)
    with pytest.raises(OSError):
        vcpu.interrupt(0x42)
    bench.run(exits.Hlt())
    assert injected(bench.asked()) == [("interrupt", 0x41, False), ("enter",)]
    vcpu.request_interrupt_window = True
    state.rflags = 2

    def opens(vcpu: SoftwareVcpu, backend: ScriptedBackend) -> Answer:
        backend.state.rflags |= IF
        return None

    assert bench.run(None, opens) == exits.IrqWindowOpen()
    assert bench.asked().count(("interrupt window", True)) == 2
    assert vcpu.ready_for_interrupt_injection and vcpu.if_flag
    bench.backend.shadow = STI
    assert not vcpu.ready_for_interrupt_injection


# -- debugging -------------------------------------------------------------------------------------


def test_a_debugger_steps_and_lends_its_breakpoints(bench: Bench) -> None:
    vcpu, state = bench.vcpu, bench.backend.state
    vcpu.set_debugregs(DebugRegs([1, 2, 3, 4], 0xFFFF0FF0, 0x455))
    bench.asked()
    both = abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP | abi.GUESTDBG_USE_HW_BP
    vcpu.set_guest_debug(both, {0: 0x1000, 7: 0x402})
    asked = bench.asked()
    assert ("breakpoints", (0x1000, 0, 0, 0), 0x402) in asked
    assert ("exception bitmap", both) in asked
    assert ("debug registers", True) in asked
    assert state.rflags & TF
    assert not vcpu.regs.rflags & TF
    assert vcpu.get_debugregs() == DebugRegs([1, 2, 3, 4], 0xFFFF0FF0, 0x455)
    vcpu.set_guest_debug(0)
    assert ("breakpoints", (1, 2, 3, 4), 0x455) in bench.asked()
    assert not state.rflags & TF


# -- CPUID, MSRs, control registers ----------------------------------------------------------------


def test_cpuid_is_the_platforms_less_what_guests_do_not_get(bench: Bench) -> None:
    leaves = bench.kvm.get_supported_cpuid()
    assert cpuid.has(leaves, cpuid.BUS_LOCK_DETECT)
    assert not cpuid.has(leaves, cpuid.MONITOR)
    bench.vcpu.set_cpuid2(leaves)
    assert ("cpuid changed",) in bench.asked()
    assert bench.vcpu.cpuid.answer(0, 0)[1].to_bytes(4, "little") == b"Scri"
    assert bench.vcpu.get_cpuid2() == leaves


def test_msrs_are_the_backends_behind_the_hypervisors_checks(bench: Bench) -> None:
    vcpu, backend = bench.vcpu, bench.backend
    assert not vcpu.msrs.set(DEBUGCTL, 4)  # no CPUID shows it
    vcpu.set_cpuid2(bench.kvm.get_supported_cpuid())
    assert vcpu.msrs.set(DEBUGCTL, 4) and backend.debugctl == 4
    backend.debugctl_mask = 0
    assert not vcpu.msrs.set(DEBUGCTL, 4)
    assert vcpu.set_msrs({LSTAR: 0x5678, TSC: 99, 0x12345: 0, LSTAR + 1: 0}) == 2
    assert (backend.msrs[LSTAR], backend.tsc) == (0x5678, 99)
    assert vcpu.get_msrs([LSTAR, TSC, 0x12345, DEBUGCTL]) == {LSTAR: 0x5678, TSC: 99}


def test_registers_go_down_and_come_back(bench: Bench) -> None:
    vcpu = bench.vcpu
    sregs = vcpu.get_sregs()
    assert (sregs.cs.base, sregs.cr0) == (0xFFFF0000, 0x60000010)
    sregs.fs.base, sregs.cr3, sregs.gdt.base = 0x7000, 0x4000, 0x9000
    vcpu.set_sregs(sregs)
    assert vcpu.get_sregs() == sregs
    sregs.cr4 = 1 << 40
    with pytest.raises(OSError):
        vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    regs.rax, regs.rip, regs.rflags = 5, 0x100, 2
    vcpu.set_regs(regs)
    assert vcpu.get_regs() == regs
    fpu = vcpu.get_fpu()
    fpu.xmm[3], fpu.fpr[1] = 1 << 100, 1 << 70
    vcpu.set_fpu(fpu)
    assert vcpu.get_fpu() == fpu
    assert vcpu.get_xsave()[160 + 48 : 160 + 64] == (1 << 100).to_bytes(16, "little")


def test_pae_paging_asks_for_the_pdptes(bench: Bench) -> None:
    control, backend = bench.vcpu.control, bench.backend
    assert control.write_cr4(1 << 5)
    backend.pdptes_are_fine = False
    assert not control.write_cr0(0x80000001)
    backend.pdptes_are_fine = True
    assert control.write_cr0(0x80000001)
    assert bench.asked().count(("load PDPTEs",)) == 2
