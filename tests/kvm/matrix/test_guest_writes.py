"""What a guest itself may set, in every mode: DEBUGCTL, DR6, DR7; LOCK where it is undefined."""

from __future__ import annotations

import pytest

from tests.kvm.matrix import modes
from tests.kvm.matrix.model import ACTIVE_LOW, BLD, GP, UD, Event
from tests.kvm.matrix.modes import Mode
from tests.kvm.matrix.program import LOCK_IS_UNDEFINED
from tests.kvm.matrix.surface import Bare, Start, Surface, Virtual
from tests.kvm.matrix.test_matrix import ENGINES, GUESTS, VENDORS
from trapline.arch.msr import IA32_DEBUGCTL

KINDS = {"bare": Bare, "kvm": Virtual}
WRMSR, RDMSR, UD2 = b"\x0f\x30", b"\x0f\x32", b"\x0f\x0b"
WRITE_DR6, READ_DR6 = b"\x0f\x23\xf0", b"\x0f\x21\xf1"  # mov dr6, eax; mov ecx, dr6
WRITE_DR7, READ_DR7 = b"\x0f\x23\xf8", b"\x0f\x21\xf9"
SPLIT = 0x3E
surfaces = [
    pytest.param(kind, vendor, engine, id=f"{kind}-{vendor}-{engine}")
    for kind in KINDS
    for vendor in VENDORS
    for engine in ENGINES
]
everywhere = pytest.mark.parametrize(("kind", "vendor", "engine"), surfaces)
guests = pytest.mark.parametrize(("mode", "cpl"), GUESTS)
kernels = pytest.mark.parametrize("mode", [name for name, cpl in GUESTS if not cpl])


def error(mode: Mode) -> int | None:
    return None if mode.is_real else 0


def run(surface: Surface, code: bytes, **general: int) -> Event:
    start = Start(code, SPLIT, 0x100, general=general)
    return surface.run(start)[0]


@everywhere
@kernels
@pytest.mark.parametrize("has_bld", [True, False], ids=["shown", "hidden"])
def test_wrmsr_of_debugctl(mode: str, kind: str, vendor: str, engine: str, has_bld: bool) -> None:
    """A.2: BLD is #GP(0) without the feature, under the hypervisor by the guest's CPUID (E.7)."""
    surface = KINDS[kind](vendor, engine, modes.MODES[mode], 0, has_bld)
    general = {"rcx": IA32_DEBUGCTL, "rax": 4, "rdx": 0}
    code = WRMSR + b"\x31\xc0" + RDMSR + UD2  # xor eax, eax between
    if has_bld:
        assert run(surface, code, **general) == Event(UD, 6)
        assert surface.get("rax") & 0xFFFF == 4
    else:
        assert run(surface, code, **general) == Event(GP, 0, error_code=error(surface.mode))


@everywhere
@kernels
@pytest.mark.parametrize("has_bld", [True, False], ids=["shown", "hidden"])
def test_dr6_reads_back_with_its_fixed_bits(
    mode: str, kind: str, vendor: str, engine: str, has_bld: bool
) -> None:
    """A.4 and E.4: writing 0 leaves bit 11 clear where the feature is, and no other."""
    surface = KINDS[kind](vendor, engine, modes.MODES[mode], 0, has_bld)
    assert run(surface, WRITE_DR6 + READ_DR6 + UD2, rax=0) == Event(UD, 6)
    assert surface.get("rcx") == (ACTIVE_LOW ^ BLD if has_bld else ACTIVE_LOW)
    assert run(surface, WRITE_DR6 + READ_DR6 + UD2, rax=0xFFFFFFFF) == Event(UD, 6)
    assert surface.get("rcx") == 0xFFFFEFFF  # bit 12 only


@everywhere
@kernels
def test_dr7_reads_back_with_its_fixed_bits(mode: str, kind: str, vendor: str, engine: str) -> None:
    """A.5: bit 10 is 1; 11, 12, 14 and 15 are 0."""
    surface = KINDS[kind](vendor, engine, modes.MODES[mode], 0)
    assert run(surface, WRITE_DR7 + READ_DR7 + UD2, rax=0xD800) == Event(UD, 6)
    assert surface.get("rcx") == 0x400


@everywhere
@guests
def test_lock_where_it_is_undefined(
    mode: str, cpl: int, kind: str, vendor: str, engine: str
) -> None:
    """A.1: a register destination, or any instruction that is not in the list; nothing is done,
    and the bus is not locked."""
    surface = KINDS[kind](vendor, engine, modes.MODES[mode], cpl)
    for name, text in LOCK_IS_UNDEFINED.items():
        code = bytes.fromhex(text)
        if surface.mode.bits == 16:
            code = bytes(0x05 if byte == 0x07 and i else byte for i, byte in enumerate(code))
        start = Start(code + UD2, SPLIT, 0x100, debugctl=4, general={"rax": 7, "rcx": 0x100})
        assert surface.run(start) == [Event(UD, 0)], name
        assert surface.dr6() == ACTIVE_LOW
        assert surface.operand(start, 4) == 0
