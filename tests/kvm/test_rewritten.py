"""An instruction that another processor rewrites before the handler of its exit looks at it."""

from __future__ import annotations

import pytest

from tests.kvm.guest import KERNEL_CODE, long_mode
from trapline.arch.svm import ExitCode
from trapline.kvm import open_kvm
from trapline.kvm.core_backend import CoreBackend
from trapline.kvm.emulator import ExitInformation
from trapline.kvm.svm.backend import SvmBackend
from trapline.kvm.svm.cr_access import handle_cr_access
from trapline.kvm.task_switch import switch_task
from trapline.kvm.vcpu import SoftwareVcpu
from trapline.processor import SvmExit


@pytest.mark.parametrize("code", ["0f a2", "f4", "0f 01 d9", "0f 22 c0", "cc"])
@pytest.mark.parametrize("cpu", ["sapphire-rapids", "zen5"])
def test_the_guest_comes_to_what_is_no_task_switch(cpu: str, code: str) -> None:
    guest = long_mode(open_kvm(cpu=cpu), bytes.fromhex(code))
    vcpu = guest.vcpu
    assert isinstance(vcpu, SoftwareVcpu) and isinstance(vcpu.backend, CoreBackend)
    assert switch_task(vcpu, vcpu.backend, None, ExitInformation(9, 0, 0, 0, 0)) is None
    assert vcpu.regs.rip == KERNEL_CODE
    guest.close()


@pytest.mark.parametrize("code", ["0f 09", "48 89 c8", "0f a2"])
def test_the_guest_comes_to_what_does_not_access_cr0(code: str) -> None:
    guest = long_mode(open_kvm(cpu="zen5"), bytes.fromhex(code))
    vcpu = guest.vcpu
    assert isinstance(vcpu, SoftwareVcpu) and isinstance(vcpu.backend, SvmBackend)
    cr0 = vcpu.get_sregs().cr0
    exit = SvmExit(ExitCode.WRITE_CR0, next_rip=KERNEL_CODE + 2)
    assert handle_cr_access(vcpu, vcpu.backend, exit) is None
    assert (vcpu.regs.rip, vcpu.get_sregs().cr0) == (KERNEL_CODE, cr0)
    guest.close()


def test_the_guest_takes_the_fault_of_code_that_is_gone() -> None:
    guest = long_mode(open_kvm(cpu="zen5"), b"")
    vcpu = guest.vcpu
    assert isinstance(vcpu, SoftwareVcpu) and isinstance(vcpu.backend, SvmBackend)
    vcpu.regs.rip = 0x700000
    exit = SvmExit(ExitCode.WRITE_CR0, next_rip=0x700002)
    assert handle_cr_access(vcpu, vcpu.backend, exit) is None
    assert vcpu.regs.rip == 0x700000
    guest.close()
