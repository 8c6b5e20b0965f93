"""What the debugger's tests share: instructions, and a debugger's way to stop and to step."""

from __future__ import annotations

from tests.kvm.guest import DATA, Guest
from trapline.kvm import abi, exits

LOCK_XADD = b"\xf0\x0f\xc1\x07"  # lock xadd [rdi], eax
NOP, HLT, INT3, SPIN = b"\x90", b"\xf4", b"\xcc", b"\xeb\xfe"
PUSHF, POPF, IRETQ, SYSCALL, SYSRETQ = b"\x9c", b"\x9d", b"\x48\xcf", b"\x0f\x05", b"\x48\x0f\x07"
LOAD = b"\x8b\x07"  # mov eax, [rdi]
STORE = b"\x89\x07"  # mov [rdi], eax
REPORT_DR6 = b"\x0f\x21\xf0" + HLT  # mov rax, dr6; hlt
SPLIT = DATA + 0x3E
ENABLE, STEP = abi.GUESTDBG_ENABLE, abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP
HARDWARE = abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_HW_BP
STEPPED = 0xFFFF4FF0  # DR6 after a single step
INTEL, AMD = "sapphire-rapids", "zen5"
EXECUTE, WRITE, IO, ACCESS = range(4)  # DR7.R/Wn


def stop(guest: Guest) -> exits.Debug:
    exit = guest.vcpu.run()
    assert isinstance(exit, exits.Debug), exit
    return exit


def step(guest: Guest) -> int:
    """One step, as a debugger does it; where the guest then stands."""
    guest.vcpu.set_guest_debug(STEP)
    exit = stop(guest)
    assert (exit.exception, exit.dr6) == (1, STEPPED)
    assert exit.pc == guest.vcpu.regs.rip
    return exit.pc


def watch(index: int, kind: int, size: int = 1) -> int:
    """DR7 with one breakpoint on, globally."""
    length = {1: 0, 2: 1, 8: 2, 4: 3}[size]
    return 0x400 | 2 << 2 * index | (kind | length << 2) << 16 + 4 * index
