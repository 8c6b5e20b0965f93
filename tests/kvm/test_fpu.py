"""KVM_SET_FPU and KVM_SET_XSAVE: what the guest finds is what FXRSTOR would have loaded."""

from __future__ import annotations

import pytest

from tests.kvm.conftest import is_pvm
from tests.kvm.guest import DATA, long_mode
from trapline.kvm import Kvm, exits

# fnstenv [DATA] masks every exception after it has stored the words; then hlt.
STORE = b"\xd9\x34\x25" + DATA.to_bytes(4, "little") + b"\xf4"
MASKED, UNMASKED = 0x37F, 0x340


@pytest.mark.parametrize("by_xsave", [False, True])
@pytest.mark.parametrize(
    ("fcw", "given", "found"),
    [
        (MASKED, 0x8080, 0x0000),  # ES and B without a cause
        (MASKED, 0x8081, 0x0001),  # the cause is masked
        (UNMASKED, 0x0001, 0x8081),  # a cause that is not masked
        (UNMASKED, 0x8080, 0x0000),
        (0x37E, 0x0002, 0x0002),
        (0x37D, 0x3802, 0xB882),  # TOP is kept
    ],
)
def test_es_and_b_follow_the_flags_and_masks(
    kvm: Kvm, fcw: int, given: int, found: int, by_xsave: bool
) -> None:
    """SDM 2A, FXRSTOR, and SDM 1, "x87 FPU Status Register": ES sums up the unmasked flags."""
    if is_pvm(kvm):
        pytest.skip("PVM emulates a guest's kernel, and has no FNSTENV")
    guest = long_mode(kvm, STORE)
    if by_xsave:
        area = bytearray(guest.vcpu.get_xsave())
        area[0:4] = fcw.to_bytes(2, "little") + given.to_bytes(2, "little")
        area[512:520] = (3).to_bytes(8, "little")
        guest.vcpu.set_xsave(bytes(area))
    else:
        fpu = guest.vcpu.get_fpu()
        fpu.fcw, fpu.fsw = fcw, given
        guest.vcpu.set_fpu(fpu)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    stored = guest.memory.read(DATA, 8)
    assert int.from_bytes(stored[0:2], "little") == fcw
    assert int.from_bytes(stored[4:6], "little") == found
    assert guest.vcpu.get_fpu().fsw == found & ~0x8080  # FNSTENV masked them all
    guest.close()


def test_reserved_bits_of_the_control_word_are_the_processors(software: Kvm) -> None:
    """Bit 6 reads as 1, bits 7 and 15:13 as 0."""
    guest = long_mode(software, STORE)
    fpu = guest.vcpu.get_fpu()
    fpu.fcw = 0xFFBF
    guest.vcpu.set_fpu(fpu)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert int.from_bytes(guest.memory.read(DATA, 2), "little") == 0x1F7F
