"""CR0 on SVM: what the processor holds, and what the guest sees while CD and NW are set."""

from __future__ import annotations

import pytest

from tests.kvm.guest import long_mode, real_mode
from trapline.arch.registers import CR0_CD, CR0_NW, CR0_PE, CR0_RESET, CR0_TS
from trapline.kvm import Kvm, exits

HLT = b"\xf4"


def test_the_guest_reads_the_cd_and_nw_it_has_set(software: Kvm) -> None:
    code = b"\x0f\x20\xc3" + b"\x0f\x01\xe1" + b"\x66\x0f\x01\xe2" + HLT
    guest = real_mode(software, code)  # mov ebx, cr0; smsw cx; smsw edx
    regs = guest.vcpu.regs
    regs.rcx = regs.rdx = 0xABCD1234
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert regs.rbx == CR0_RESET
    assert regs.rcx == 0xABCD0000 | CR0_RESET & 0xFFFF
    assert regs.rdx == CR0_RESET


@pytest.mark.parametrize("hidden", [0, CR0_CD | CR0_NW])
def test_clts_and_lmsw(software: Kvm, hidden: int) -> None:
    """By the processor, or while the guest's CR0 is not the processor's, by the hypervisor."""
    guest = long_mode(software, b"\x0f\x06" + b"\x0f\x01\xf0" + HLT)  # clts; lmsw ax
    sregs = guest.vcpu.get_sregs()
    before = sregs.cr0
    sregs.cr0 |= CR0_TS | hidden
    guest.vcpu.set_sregs(sregs)
    guest.vcpu.regs.rax = 0xFFF0 | 2  # MP, and PE as 0
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.get_sregs().cr0 == before & ~CR0_TS & ~0xF | 2 | CR0_PE | hidden
