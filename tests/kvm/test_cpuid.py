"""What the hypervisor makes of a processor's leaves."""

from __future__ import annotations

import pytest

from trapline.arch import cpuid
from trapline.kvm import open_kvm


@pytest.mark.parametrize("cpu", ["zen4", "zen5"])
def test_what_amd_says_twice_is_said_alike(cpu: str) -> None:
    """APM 3, CPUID Fn8000_0001_EDX: bits 9:0, 17:12, 24, 23 are those of Fn0000_0001_EDX."""
    entries = open_kvm(cpu=cpu).get_supported_cpuid()
    one, extended = cpuid.find(entries, 1), cpuid.find(entries, 0x80000001)
    assert one is not None and extended is not None
    assert one.edx & 0x0183F3FF == extended.edx & 0x0183F3FF
