"""SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the FS/GS base instructions."""

from __future__ import annotations

import pytest

from tests.processor.long_mode import KERNEL, USER, USER_PHYSICAL, USER_STACK, LongMode
from trapline.arch.descriptor import AR_L
from trapline.arch.registers import CR4_FSGSBASE, EFER_SCE, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF

SYSCALL, SYSRETQ, SYSRETD = b"\x0f\x05", b"\x48\x0f\x07", b"\x0f\x07"
SYSENTER, SYSEXITQ, SYSEXIT, SWAPGS = b"\x0f\x34", b"\x48\x0f\x35", b"\x0f\x35", b"\x0f\x01\xf8"
DB, BP, UD, GP = 1, 3, 6, 13
STAR = 0x0008 << 32 | 0x0018 << 48


@pytest.fixture
def machine() -> LongMode:
    machine = LongMode()
    machine.state.star, machine.state.lstar = STAR, KERNEL + 0x100
    machine.state.sfmask = RFLAGS_IF | RFLAGS_TF
    return machine


def test_syscall_enters_with_fixed_segments(machine: LongMode) -> None:
    machine.user(SYSCALL, system_flags=2 | RFLAGS_IF, r11=1, rcx=2).step()
    state = machine.state
    assert (state.rip, state.cpl, state.rsp) == (KERNEL + 0x100, 0, USER_STACK)
    assert (state.rcx, state.r11) == (USER + 2, 2 | RFLAGS_IF)
    assert state.rflags == 2
    assert (state.cs_selector, state.ss_selector) == (8, 0x10)
    assert (state.cs_base, state.cs_limit, state.ss_limit) == (0, 0xFFFFFFFF, 0xFFFFFFFF)
    assert state.cs_attributes & AR_L and not state.cs_attributes >> 5 & 3
    assert state.tlb == state.tlb_supervisor


def test_sysret_leaves_with_rcx_and_r11(machine: LongMode) -> None:
    machine.kernel(SYSRETQ, rcx=USER, r11=0x3FFFFF).step()
    state = machine.state
    assert (state.rip, state.cpl) == (USER, 3)
    assert (state.cs_selector, state.ss_selector) == (0x2B, 0x23)
    assert state.cs_attributes & AR_L and state.cs_attributes >> 5 & 3 == 3
    assert state.rflags == 0x3C7FD7  # RF and VM are dropped
    assert state.tlb == state.tlb_user


def test_sysret_to_compatibility_mode(machine: LongMode) -> None:
    machine.kernel(SYSRETD, rcx=0xFFFF_0000_0000 | USER, r11=2).step()
    state = machine.state
    assert (state.rip, state.cs_selector) == (USER, 0x1B)
    assert not state.cs_attributes & AR_L and state.cs_attributes >> 14 & 1


@pytest.mark.parametrize("engine", ["interp", "jit"])
@pytest.mark.parametrize("model", ["sapphire-rapids", "zen5"])
@pytest.mark.parametrize("code", [SYSRETQ, SYSRETD])
def test_a_single_step_across_sysret_goes_by_the_tf_it_loads(
    engine: str, model: str, code: bytes
) -> None:
    """Linux, entry_64.S: TF in R11 traps before the first instruction at CPL 3 is done."""
    machine = LongMode(model, engine)
    machine.state.star = STAR
    machine.bus.bytes[USER_PHYSICAL : USER_PHYSICAL + 2] = b"\x90\xcc"
    machine.kernel(code, rcx=USER, r11=2 | RFLAGS_TF).core.run()
    frame = machine.frame()
    assert (machine.vector, frame.rip, frame.cs & 3) == (DB, USER, 3)
    assert frame.rflags == 2 | RFLAGS_TF
    assert machine.state.dr6 & 1 << 14
    stepped = {"system_flags": 2 | RFLAGS_TF, "activity": 0}
    machine.kernel(code, rcx=USER, r11=2, **stepped).core.run()
    assert (machine.vector, machine.frame().rip) == (BP, USER + 2)


def test_sysret_checks_rcx_before_it_leaves(machine: LongMode) -> None:
    machine.kernel(SYSRETQ, rcx=1 << 47, r11=2).step()
    assert (machine.vector, machine.frame(True).cs) == (GP, 8)


def test_they_need_sce_and_sysret_cpl_0(machine: LongMode) -> None:
    machine.user(SYSRETQ, rcx=USER).step()
    assert (machine.vector, machine.frame(True).error_code) == (GP, 0)
    machine.state.efer &= ~EFER_SCE
    machine.user(SYSCALL).step()
    assert machine.vector == UD
    machine.kernel(SYSRETQ).step()
    assert machine.vector == UD


def test_syscall_in_32_bit_code_is_amds(machine: LongMode) -> None:
    machine.user_32(SYSCALL).step()
    assert machine.vector == UD
    zen = LongMode("zen5")
    zen.state.star, zen.state.cstar = STAR, KERNEL + 0x200
    zen.user_32(SYSCALL).step()
    assert (zen.state.rip, zen.state.rcx, zen.state.cpl) == (KERNEL + 0x200, USER + 2, 0)


def test_a_round_trip_keeps_the_flags(machine: LongMode) -> None:
    machine.bus.bytes[KERNEL + 0x100 : KERNEL + 0x103] = SYSRETQ
    machine.user(SYSCALL, system_flags=2 | RFLAGS_IF | RFLAGS_RF, cc_kind=0, cc_src=0x8D5).step(2)
    assert (machine.state.rip, machine.state.rflags) == (USER + 2, 2 | RFLAGS_IF | 0x8D5)


def test_sysenter_and_sysexit(machine: LongMode) -> None:
    state = machine.state
    state.sysenter_cs, state.sysenter_esp, state.sysenter_eip = 8, 0x12000, KERNEL + 0x100
    machine.user(SYSENTER, system_flags=2 | RFLAGS_IF).step()
    assert (state.rip, state.rsp, state.cpl, state.rflags) == (KERNEL + 0x100, 0x12000, 0, 2)
    assert (state.cs_selector, state.ss_selector) == (8, 0x10)
    machine.kernel(SYSEXITQ, rcx=USER_STACK, rdx=USER + 8).step()
    assert (state.rip, state.rsp, state.cpl) == (USER + 8, USER_STACK, 3)
    assert (state.cs_selector, state.ss_selector) == (8 + 32 | 3, 8 + 40 | 3)
    machine.kernel(SYSEXIT, rcx=USER_STACK, rdx=USER + 8).step()
    assert (state.cs_selector, state.ss_selector) == (8 + 16 | 3, 8 + 24 | 3)
    state.sysenter_cs = 0
    machine.user(SYSENTER).step()
    assert (machine.vector, machine.frame(True).error_code) == (GP, 0)


def test_swapgs_is_for_cpl_0(machine: LongMode) -> None:
    machine.kernel(SWAPGS, gs_base=1, kernel_gs_base=2).step()
    assert (machine.state.gs_base, machine.state.kernel_gs_base) == (2, 1)
    machine.user(SWAPGS).step()
    assert machine.vector == GP


WRFSBASE_RAX, RDGSBASE_EAX = b"\xf3\x48\x0f\xae\xd0", b"\xf3\x0f\xae\xc8"


def test_base_instructions_need_the_feature_and_cr4() -> None:
    machine = LongMode("max")
    machine.user(WRFSBASE_RAX, rax=0x1234).step()
    assert machine.vector == UD
    machine.state.cr4 |= CR4_FSGSBASE
    machine.user(WRFSBASE_RAX + RDGSBASE_EAX, rax=0x1234, gs_base=0x5_0000_6789).step(2)
    assert (machine.state.fs_base, machine.state.rax) == (0x1234, 0x6789)
    machine.user(WRFSBASE_RAX, rax=1 << 60).step()
    assert machine.vector == GP
