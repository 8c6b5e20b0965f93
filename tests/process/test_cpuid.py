"""What CPUID tells a program: nothing that would have it choose code that is not there."""

from __future__ import annotations

import pytest

from trapline.arch import cpuid
from trapline.kvm import open_kvm
from trapline.process.cpuid import for_program
from trapline.process.extended_state import X87_AND_SSE
from trapline.processor import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_family_and_model_are_of_a_processor_without_later_extensions(name: str) -> None:
    """libgcc's __cpu_model, which picks a program's variants, goes by these two alone."""
    kvm = open_kvm("software", cpu=name)
    before = kvm.get_supported_cpuid()
    kvm.close()
    shown = for_program(before, X87_AND_SSE, bus_lock_detection=True)
    for function in (1, 0x80000001):
        was, entry = cpuid.find(before, function), cpuid.find(shown, function)
        assert was is not None and entry is not None
        assert entry.eax == ((0x60FB1 if MODELS[name].is_amd else 0x106A5) if was.eax else 0)
    entry = cpuid.find(shown, 0)
    assert entry is not None
    assert entry.ebx == (0x68747541 if MODELS[name].is_amd else 0x756E6547)
