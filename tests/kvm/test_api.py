"""The API, on the software hypervisor with both engines and on the host's KVM alike."""

from __future__ import annotations

import ctypes
import errno
import mmap
import threading
import time
from typing import Any

import pytest

from tests.kvm.guest import DATA, KERNEL_CODE, handle, long_mode, real_mode
from trapline.arch.registers import RFLAGS_TF
from trapline.kvm import DebugRegs, Kvm, abi, exits, open_kvm

SPIN = b"\xeb\xfe"  # jmp $


def test_a_real_mode_guest_writes_reads_and_halts(kvm: Kvm) -> None:
    """KVM_EXIT_IO both ways, then KVM_EXIT_HLT; registers through the view only."""
    guest = real_mode(kvm, b"\xb8\xcd\xab\xe7\x10\xe5\x12\xf4")  # mov ax; out; in; hlt
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Io)
    assert (exit.is_input, exit.port, exit.size, exit.count) == (False, 0x10, 2, 1)
    assert bytes(exit.data) == b"\xcd\xab"
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Io)
    assert (exit.is_input, exit.port) == (True, 0x12)
    exit.data[:] = b"\x34\x12"
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0x1234
    assert guest.vcpu.regs.rip == 0x1008
    assert guest.vcpu.get_regs().rax == 0x1234
    guest.close()


def test_segment_bases_written_through_the_vcpu_reach_the_guest(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x64\x48\x8b\x04\x25\x08\x00\x00\x00\xf4")  # mov rax, fs:[8]
    guest.memory.write_quads(DATA + 8, 0xFEEDFACE)
    guest.vcpu.fs_base = DATA
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFEEDFACE
    assert guest.vcpu.fs_base == DATA == guest.vcpu.get_sregs().fs.base
    guest.close()


def test_the_view_and_the_ioctls_show_the_same_registers(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\xf4")
    guest.vcpu.regs.rbx = 0x1234
    regs = guest.vcpu.get_regs()
    assert regs.rbx == 0x1234
    regs.rcx = 0x5678
    guest.vcpu.set_regs(regs)
    assert (guest.vcpu.regs.rbx, guest.vcpu.regs.rcx) == (0x1234, 0x5678)
    guest.vcpu.set_msrs({0xC0000100: 0x7000})
    assert guest.vcpu.fs_base == 0x7000
    guest.close()


def test_a_kick_ends_a_running_guest(kvm: Kvm) -> None:
    guest = long_mode(kvm, SPIN)
    seen: list[exits.Exit] = []
    thread = threading.Thread(target=lambda: seen.append(guest.vcpu.run()))
    thread.start()
    time.sleep(0.1)
    assert seen == []
    guest.vcpu.kick()
    thread.join(60)
    assert isinstance(seen[0], exits.Interrupted)
    guest.close()


def test_a_kick_before_the_run_ends_that_run_only(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\xf4")
    guest.vcpu.kick()
    assert isinstance(guest.vcpu.run(), exits.Interrupted)
    assert guest.vcpu.regs.rip == KERNEL_CODE
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    guest.close()


def test_single_step_is_reported_with_kvms_dr6(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x90\x90\xf4")
    guest.vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP)
    exit = guest.vcpu.run()
    assert exit == exits.Debug(1, KERNEL_CODE + 1, 0xFFFF4FF0, exit.dr7)
    guest.close()


def test_a_hardware_breakpoint_of_the_debugger_is_reported(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x90\x90\xf4")
    control = abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_HW_BP
    guest.vcpu.set_guest_debug(control, {2: KERNEL_CODE + 1, 7: 0x400 | 1 << 5})
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Debug)
    assert (exit.exception, exit.pc, exit.dr6) == (1, KERNEL_CODE + 1, 0xFFFF0FF0 | 1 << 2)
    guest.close()


def test_a_queued_exception_reaches_the_guests_handler(kvm: Kvm) -> None:
    """KVM_SET_VCPU_EVENTS with an injected #UD."""
    guest = long_mode(kvm, SPIN)
    at = handle(guest, 6, b"\xf4")
    events = guest.vcpu.get_vcpu_events()
    events.exception_injected, events.exception_nr = 1, 6
    guest.vcpu.set_vcpu_events(events)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == at + 1
    guest.close()


def test_a_debug_payload_is_delivered_into_dr6(kvm: Kvm) -> None:
    """KVM_CAP_EXCEPTION_PAYLOAD: a pending #DB with BS; DR6 changes when it is delivered."""
    guest = long_mode(kvm, SPIN)
    guest.vm.enable_cap(abi.Capability.EXCEPTION_PAYLOAD, 1)
    handle(guest, 1, b"\x0f\x21\xf0\xf4")  # mov rax, dr6; hlt
    events = guest.vcpu.get_vcpu_events()
    events.exception_pending, events.exception_nr = 1, 1
    events.exception_has_payload, events.exception_payload = 1, 0x4002
    events.flags |= abi.VCPUEVENT_VALID_PAYLOAD
    guest.vcpu.set_vcpu_events(events)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF4FF2
    guest.close()


def test_debug_registers_fpu_xcrs_and_mp_state_round_trip(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\xf4")
    vcpu = guest.vcpu
    vcpu.set_debugregs(DebugRegs([1, 2, 3, 4], 0xFFFF4FF0, 0x401))
    assert vcpu.get_debugregs() == DebugRegs([1, 2, 3, 4], 0xFFFF4FF0, 0x401)
    fpu = vcpu.get_fpu()
    fpu.xmm[3], fpu.fpr[1] = 1 << 127 | 5, 1 << 79 | 7
    vcpu.set_fpu(fpu)
    assert vcpu.get_fpu().xmm[3] == 1 << 127 | 5
    area = bytearray(vcpu.get_xsave())
    area[512:520] = (3).to_bytes(8, "little")  # XSTATE_BV: x87 and SSE
    area[160 + 48 : 160 + 64] = (1 << 126 | 9).to_bytes(16, "little")
    vcpu.set_xsave(bytes(area))
    assert vcpu.get_xsave()[160 + 48 : 160 + 64] == area[160 + 48 : 160 + 64]
    assert vcpu.get_fpu().xmm[3] == 1 << 126 | 9
    assert vcpu.get_xcrs() == {0: 1}
    vcpu.set_xcrs({0: 3})
    assert vcpu.get_xcrs() == {0: 3}
    assert vcpu.get_mp_state() == abi.MpState.RUNNABLE
    vcpu.set_mp_state(abi.MpState.RUNNABLE)
    with pytest.raises(OSError, match="Invalid argument"):
        vcpu.set_mp_state(abi.MpState.HALTED)  # there is no interrupt controller
    guest.close()


def test_translate_walks_the_guests_tables(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\xf4")
    answer = guest.vcpu.translate(0x200123)
    assert (answer.valid, answer.physical_address) == (True, 0x200123)
    assert not guest.vcpu.translate(1 << 40).valid
    guest.close()


def test_an_interrupt_waits_for_the_window(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x90\xfb\x90" + SPIN)  # nop; sti; nop; jmp $
    at = handle(guest, 0x40, b"\xf4")
    guest.vcpu.request_interrupt_window = True
    assert isinstance(guest.vcpu.run(), exits.IrqWindowOpen)
    assert guest.vcpu.ready_for_interrupt_injection
    guest.vcpu.request_interrupt_window = False
    guest.vcpu.interrupt(0x40)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rip == at + 1
    guest.close()


def test_a_triple_fault_is_a_shutdown(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\x0f\x0b")  # ud2, and an empty IDT
    assert isinstance(guest.vcpu.run(), exits.Shutdown)
    guest.close()


def test_msrs_stop_at_the_first_refused(kvm: Kvm) -> None:
    guest = long_mode(kvm, b"\xf4")
    assert guest.vcpu.set_msrs({0xC0000082: 0x1000, 0x12345: 0, 0xC0000083: 2}) == 1
    assert guest.vcpu.get_msrs([0xC0000082, 0xC0000083]) == {0xC0000082: 0x1000, 0xC0000083: 0}
    guest.close()


def test_the_guests_own_single_step_has_kvms_dr6(kvm: Kvm) -> None:
    """TF in the guest: #DB goes to the guest's handler, BS set."""
    guest = long_mode(kvm, b"\x90" + SPIN)
    handle(guest, 1, b"\x0f\x21\xf0\xf4")
    guest.vcpu.regs.rflags = 2 | RFLAGS_TF
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rax == 0xFFFF4FF0
    guest.close()


def test_errors_are_os_errors_with_kvms_number(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    with pytest.raises(OSError, match="Invalid argument"):
        vm.set_user_memory_region(0, 0, 0x123, 0x1000, 0)
    vm.close()


def test_cpuid_stays_as_it_was_when_the_vcpu_first_ran(kvm: Kvm) -> None:
    """kvm_set_cpuid(); the same leaves again are accepted since Linux 5.17."""
    guest = long_mode(kvm, b"\xf4")
    leaves = kvm.get_supported_cpuid()
    guest.vcpu.set_cpuid2(leaves[:-1])
    guest.vcpu.set_cpuid2(leaves)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    for other in (leaves[:-1], []):
        with pytest.raises(OSError) as refused:
            guest.vcpu.set_cpuid2(other)
        assert refused.value.errno == errno.EINVAL
    guest.close()


def test_the_same_cpuid_is_accepted_after_running() -> None:
    """kvm_cpuid_check_equal(); kernels before 5.17 refuse that too."""
    guest = long_mode(open_kvm(), b"\xf4")
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    before = guest.vcpu.get_cpuid2()
    guest.vcpu.set_cpuid2(before)
    assert guest.vcpu.get_cpuid2() == before
    guest.close()


@pytest.mark.parametrize("slot", [-1, 0xFFFF])
def test_slots_have_numbers_from_0_to_their_limit(slot: int) -> None:
    """__kvm_set_memory_region()."""
    guest = long_mode(open_kvm(), b"\xf4")
    memory = mmap.mmap(-1, 4096)
    host = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with pytest.raises(OSError) as refused:
        guest.vm.set_user_memory_region(slot, 0, 1 << 32, 4096, host)
    assert refused.value.errno == errno.EINVAL
    guest.close()


def test_a_name_that_is_no_register_is_refused() -> None:
    guest = long_mode(open_kvm(), b"\xf4")
    with pytest.raises(AttributeError):
        guest.vcpu.regs.ripp = 1  # type: ignore[attr-defined]
    guest.vcpu.set_guest_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP)
    with pytest.raises(AttributeError):
        guest.vcpu.regs.ripp = 1  # type: ignore[attr-defined]
    guest.close()


@pytest.mark.parametrize(
    ("backend", "options", "words"),
    [
        ("hostt", {}, "no hypervisor 'hostt'; there are software and host"),
        ("software", {"engine": "x"}, "no engine 'x'; there are jit and interp"),
        ("host", {"cpu": "sapphire-rapids"}, "none of the software's options"),
        ("host", {"engine": "jit"}, "none of the software's options"),
        ("host", {"observer": object()}, "none of the software's options"),
        ("host", {"force_emulation_prefix": 1}, "none of the software's options"),
    ],
)
def test_what_does_not_exist_is_refused_when_it_is_asked_for(
    backend: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        open_kvm(backend, **options)
