"""MSRs that upstream answers for with nothing behind them (kvm_get_msr_common)."""

from __future__ import annotations

import pytest

from trapline.kvm import open_kvm, pretended


@pytest.mark.parametrize("cpu", ["sapphire-rapids", "zen5"])
def test_systems_that_know_the_model_find_what_they_look_for(cpu: str) -> None:
    """A read gives the constant on either vendor, as upstream does not ask whose MSR it is."""
    vcpu = open_kvm(cpu=cpu).create_vm().create_vcpu(0)
    assert vcpu.get_msrs(pretended.CONSTANT) == pretended.CONSTANT
    for index in pretended.CONSTANT:
        taken = vcpu.set_msrs({index: 1})
        assert taken == (index in pretended.IGNORED), hex(index)
    assert vcpu.get_msrs(pretended.CONSTANT) == pretended.CONSTANT


@pytest.mark.parametrize(("word", "kept"), [(0x148, 0), (1 << 18 | 1 << 24, 1 << 18 | 1 << 24)])
def test_hwcr_keeps_the_bits_that_upstream_keeps(word: int, kept: int) -> None:
    """kvm_set_msr_common(): cache, flush filter and IGNNE bits are ignored."""
    vcpu = open_kvm(cpu="zen5").create_vm().create_vcpu(0)
    assert vcpu.set_msrs({pretended.HWCR: word}) == 1
    assert vcpu.get_msrs([pretended.HWCR]) == {pretended.HWCR: kept}
    assert vcpu.set_msrs({pretended.HWCR: 1 << 4}) == 0
