"""Waiting for an interrupt or NMI window costs nothing in between, and ends where it should."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.kvm.guest import CS0, CS3, DS0, KERNEL_CODE, KERNEL_STACK, USER_CODE, handle, long_mode
from trapline.arch import msr
from trapline.arch.registers import RFLAGS_IF
from trapline.kvm import Kvm, exits, open_kvm

LOOP = bytes.fromhex("48ffc8 75fb")  # dec rax; jnz
STI, NOP, HLT, POPFQ = b"\xfb", b"\x90", b"\xf4", b"\x9d"
IRETQ, SYSRETQ = b"\x48\xcf", b"\x48\x0f\x07"
ELSEWHERE = 0x100
TURNS = 100_000
CPUS = ["sapphire-rapids", "zen5"]


@pytest.fixture(params=CPUS)
def fast(request: pytest.FixtureRequest) -> Kvm:
    return open_kvm(cpu=request.param)


def _entries(vcpu: Any) -> int:
    return cast(int, vcpu.backend.core.engine.entries)


@pytest.mark.parametrize(
    "ending, opens_at",
    [
        (STI + NOP, len(LOOP) + 2),  # behind the shadow
        (POPFQ, len(LOOP) + 1),
        (IRETQ, ELSEWHERE),
    ],
)
def test_an_interrupt_window_opens_where_interrupts_are_enabled(
    named: tuple[str, Kvm], ending: bytes, opens_at: int
) -> None:
    guest = long_mode(named[1], LOOP + ending + HLT)
    guest.memory.write(KERNEL_CODE + ELSEWHERE, HLT)
    regs = guest.vcpu.regs
    regs.rax, regs.rsp = 20, KERNEL_STACK - 40
    flags = RFLAGS_IF | 2
    returned = (KERNEL_CODE + ELSEWHERE, CS0, flags, KERNEL_STACK, DS0)
    guest.memory.write_quads(KERNEL_STACK - 40, *(returned if ending == IRETQ else (flags,)))
    guest.vcpu.request_interrupt_window = True
    assert isinstance(guest.vcpu.run(), exits.IrqWindowOpen)
    assert (regs.rip, regs.rax) == (KERNEL_CODE + opens_at, 0)


def test_a_window_opens_on_the_way_to_ring_3(named: tuple[str, Kvm]) -> None:
    """SYSRET enables interrupts, which native code does by itself only where none waits."""
    guest = long_mode(named[1], SYSRETQ)
    guest.memory.write(USER_CODE, NOP)
    guest.vcpu.set_msrs({msr.IA32_STAR: (CS0 | (CS3 - 16) << 16) << 32})
    regs = guest.vcpu.regs
    regs.rcx, regs.r11 = USER_CODE, RFLAGS_IF | 2
    guest.vcpu.request_interrupt_window = True
    assert isinstance(guest.vcpu.run(), exits.IrqWindowOpen)
    assert regs.rip == USER_CODE


def test_code_with_interrupts_off_is_native_while_an_interrupt_waits(fast: Kvm) -> None:
    guest = long_mode(fast, LOOP + STI + NOP + HLT)
    guest.vcpu.regs.rax = TURNS
    guest.vcpu.request_interrupt_window = True
    assert isinstance(guest.vcpu.run(), exits.IrqWindowOpen)
    assert guest.vcpu.regs.rip == KERNEL_CODE + len(LOOP) + 2
    assert _entries(guest.vcpu) < 20


def test_an_nmi_handler_is_native_while_another_nmi_waits(fast: Kvm) -> None:
    guest = long_mode(fast, NOP + HLT)
    turns = b"\xb8" + TURNS.to_bytes(4, "little")  # mov eax, imm32
    handle(guest, 2, turns + LOOP + bytes.fromhex("48ffc3") + IRETQ)  # inc rbx
    for _ in range(2):
        guest.vcpu.nmi()
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.regs.rbx == 2
    assert _entries(guest.vcpu) < 40
