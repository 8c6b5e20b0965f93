"""CPUID by model, MSRs with their checks, time stamps."""

from __future__ import annotations

import pytest

from tests.processor.bare import Bare
from tests.processor.long_mode import LongMode
from trapline.arch import msr
from trapline.arch.cpuid import BUS_LOCK_DETECT, CORE_CAPABILITIES, has
from trapline.arch.registers import CR4_OSXSAVE, CR4_TSD, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE
from trapline.processor.cpuid import MODELS, model
from trapline.processor.fault import Fault, HostLimit

GP = 13
CPUID, RDMSR, WRMSR, RDTSC = b"\x0f\xa2", b"\x0f\x32", b"\x0f\x30", b"\x0f\x31"


def leaf(machine: LongMode, function: int, index: int = 0) -> tuple[int, int, int, int]:
    machine.user(CPUID, rax=function | 0xFF << 32, rcx=index).step()
    state = machine.state
    return state.rax, state.rbx, state.rcx, state.rdx


@pytest.mark.parametrize(
    ("name", "db", "enumerated", "controlled"),
    [
        ("legacy", False, False, False),
        ("icelake", False, False, True),
        ("sapphire-rapids", True, True, True),
        ("zen4", False, False, False),
        ("zen5", True, False, False),
        ("max", True, True, True),
    ],
)
def test_models_differ_in_what_they_tell_of_bus_locks(
    name: str, db: bool, enumerated: bool, controlled: bool
) -> None:
    bare = Bare(name)
    _, _, ecx, edx = bare.model.cpuid(bare.state, 7, 0)
    assert (bool(ecx >> 24 & 1), bool(edx >> 30 & 1)) == (db, enumerated)
    assert has(bare.model.entries(), BUS_LOCK_DETECT) == db
    assert accepts(bare, msr.IA32_DEBUGCTL, 4) == db
    assert accepts(bare, msr.TEST_CTRL, 1 << 29) == controlled
    if enumerated:
        assert bare.msrs.read(msr.IA32_CORE_CAPABILITIES) == 1 << 5
    else:
        with pytest.raises(Fault):
            bare.msrs.read(msr.IA32_CORE_CAPABILITIES)


def accepts(bare: Bare, number: int, word: int) -> bool:
    try:
        bare.msrs.write(number, word)
    except Fault as fault:
        assert (fault.vector, fault.error_code) == (13, 0)
        return False
    return bare.msrs.read(number) == word


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_an_x86_64_v2(name: str) -> None:
    bare = Bare(name)
    vendor = bare.model.cpuid(bare.state, 0, 0)
    text = b"".join(vendor[i].to_bytes(4, "little") for i in (1, 3, 2))
    assert text == (b"AuthenticAMD" if name.startswith("zen") else b"GenuineIntel")
    _, ebx, ecx, edx = bare.model.cpuid(bare.state, 1, 0)
    for position in (0, 9, 13, 19, 20, 23):  # SSE3 SSSE3 CX16 SSE4.1 SSE4.2 POPCNT
        assert ecx >> position & 1
    for position in (0, 4, 5, 8, 15, 23, 24, 25, 26):
        assert edx >> position & 1
    for position in (12, 25, 28, 30):  # no FMA AES AVX RDRAND: they are not implemented
        assert not ecx >> position & 1
    assert ebx >> 8 & 0xFF == 8  # CLFLUSH line in quadwords
    _, _, ecx, edx = bare.model.cpuid(bare.state, 0x80000001, 0)
    assert ecx & 1 and edx >> 11 & 1 and edx >> 20 & 1 and edx >> 27 & 1 and edx >> 29 & 1
    assert bare.model.cpuid(bare.state, 0x80000006, 0)[2] & 0xFF == 64
    assert bare.model.cpuid(bare.state, 0xD, 0) == (3, 576, 576, 0)


def test_leaves_beyond_the_last_answer_as_the_vendor_does() -> None:
    intel, amd = Bare("legacy"), Bare("zen4")
    assert intel.model.cpuid(intel.state, 0x50, 0) == intel.model.cpuid(intel.state, 0xD, 0)
    assert amd.model.cpuid(amd.state, 0x50, 0) == (0, 0, 0, 0)
    assert amd.model.cpuid(amd.state, 1, 0, apic_id=5)[1] >> 24 == 5
    assert intel.model.cpuid(intel.state, 0xB, 1, apic_id=5)[3] == 5


def test_cpuid_zero_extends_and_follows_cr4() -> None:
    machine = LongMode()
    assert leaf(machine, 0)[0] == 0xD
    assert leaf(machine, 1)[2] >> 27 & 1
    machine.state.cr4 &= ~CR4_OSXSAVE
    assert not leaf(machine, 1)[2] >> 27 & 1
    assert leaf(machine, 4, 1)[0] & 0x1F == 2
    assert leaf(machine, 4, 9) == (0, 0, 0, 0)


def test_features_can_be_added_and_taken_away() -> None:
    assert not model("max,-bus_lock_detect").has(BUS_LOCK_DETECT)
    added = model("legacy,+bus-lock-detect,+core_capabilities")
    assert added.has(BUS_LOCK_DETECT) and added.has(CORE_CAPABILITIES)
    assert added.has_split_lock_ac
    for text in ("pentium", "max,bus_lock_detect", "max,+flying"):
        with pytest.raises(HostLimit):
            model(text)


def test_rdmsr_and_wrmsr_are_for_cpl_0() -> None:
    machine = LongMode()
    for code in (RDMSR, WRMSR):
        machine.user(code, rcx=msr.IA32_STAR).step()
        assert (machine.vector, machine.frame(True).error_code) == (GP, 0)
    machine.kernel(WRMSR + RDMSR, rcx=msr.IA32_STAR | 1 << 40, rax=1 << 32 | 0x55, rdx=0x66).step()
    assert machine.state.star == 0x66_0000_0055
    machine.kernel(RDMSR, rcx=msr.IA32_STAR).step()
    assert (machine.state.rax, machine.state.rdx) == (0x55, 0x66)
    machine.kernel(RDMSR, rcx=0x12345678).step()
    assert machine.vector == GP


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (msr.IA32_LSTAR, 1 << 47),
        (msr.IA32_FS_BASE, 1 << 63),
        (msr.IA32_FMASK, 1 << 32),
        (msr.IA32_PAT, 0x0207040600070406),
        (msr.IA32_EFER, 1 << 1),
        (msr.IA32_EFER, EFER_NXE),  # LME may not be cleared while paging is on
        (msr.IA32_DEBUGCTL, 1 << 6),
        (msr.IA32_DEBUGCTL, 1 << 16),
        (msr.IA32_MTRRCAP, 0),
        (msr.IA32_MTRR_DEF_TYPE, 0x802),
        (msr.IA32_MTRR_PHYSBASE0, 0x1002),
        (msr.TEST_CTRL, 1),
        (msr.IA32_APIC_BASE, 1 << 10),
    ],
)
def test_msrs_refuse_what_is_reserved(number: int, word: int) -> None:
    machine = LongMode()
    machine.kernel(WRMSR, rcx=number, rax=word & 0xFFFFFFFF, rdx=word >> 32).step()
    assert (machine.vector, machine.frame(True).error_code) == (GP, 0)


def test_efer_keeps_lma() -> None:
    machine = LongMode()
    machine.kernel(WRMSR, rcx=msr.IA32_EFER, rax=EFER_LME | EFER_SCE, rdx=0).step()
    assert machine.state.efer == EFER_LME | EFER_LMA | EFER_SCE


def test_amds_debugctl_ignores_what_reads_as_zero() -> None:
    bare = Bare("zen5")
    bare.msrs.write(msr.IA32_DEBUGCTL, 1 << 7 | 1 << 20 | 4)
    assert bare.msrs.read(msr.IA32_DEBUGCTL) == 4
    assert not accepts(bare, msr.IA32_DEBUGCTL, 1 << 3)


def test_time_goes_on_and_can_be_set() -> None:
    machine = LongMode()
    machine.user(RDTSC + b"\x0f\x01\xf9", tsc_aux=7).step()
    first = machine.state.rdx << 32 | machine.state.rax
    machine.step()
    second = machine.state.rdx << 32 | machine.state.rax
    assert (second > first, machine.state.rcx) == (True, 7)
    machine.core.msrs.write(msr.IA32_TSC, 0)
    assert machine.core.msrs.read(msr.IA32_TSC) < 1 << 40
    machine.state.cr4 |= CR4_TSD
    machine.user(RDTSC).step()
    assert machine.vector == GP
