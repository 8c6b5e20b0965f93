"""Locked updates by the emulator of one vCPU and by another vCPU's processor: none is lost."""

from __future__ import annotations

import threading

import pytest

from tests.kvm.emulator.conftest import MODELS
from tests.kvm.guest import DATA, KERNEL_CODE, Guest, long_mode
from trapline.kvm import Vcpu, exits, open_kvm

PREFIX = b"\x0f\x0bkvm"
COUNT, FLAG = 300, DATA + 0x800
# mov ecx, COUNT; prefix, lock inc dword [rdi]; dec ecx; jnz; mov byte [rsi], 1; hlt
EMULATED = b"\xb9" + COUNT.to_bytes(4, "little") + PREFIX
EMULATED += bytes.fromhex("f0ff07 ffc9 75f4 c60601 f4")
# xor ecx, ecx; lock inc dword [rdi]; inc ecx; cmp byte [rsi], 0; jz; hlt
EXECUTED = bytes.fromhex("31c9 f0ff07 ffc1 803e00 74f6 f4")


@pytest.mark.parametrize("offset", [0, 30, 62, 0xFFE])
def test_no_locked_update_is_lost(vendor: str, offset: int) -> None:
    """Inside a line, across lines, and across pages; the one counts until the other is done."""
    kvm = open_kvm(cpu=MODELS[vendor], force_emulation_prefix=1)
    guest = long_mode(kvm, EMULATED)
    guest.memory.write(KERNEL_CODE + 0x100, EXECUTED)
    vcpus = [guest.vcpu, _second(guest)]
    ends: list[exits.Exit] = []
    threads = [threading.Thread(target=lambda one=one: ends.append(one.run())) for one in vcpus]
    for vcpu in vcpus:
        vcpu.regs.rdi, vcpu.regs.rsi = DATA + offset, FLAG
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(end) for end in ends] == [exits.Hlt, exits.Hlt]
    total = int.from_bytes(guest.memory.read(DATA + offset, 4), "little")
    assert total == COUNT + vcpus[1].regs.rcx and vcpus[1].regs.rcx


def _second(guest: Guest) -> Vcpu:
    vcpu = guest.vm.create_vcpu(1)
    vcpu.set_cpuid2(guest.kvm.get_supported_cpuid())
    vcpu.set_sregs(guest.vcpu.get_sregs())
    regs = guest.vcpu.get_regs()
    regs.rip = KERNEL_CODE + 0x100
    vcpu.set_regs(regs)
    return vcpu
