"""Every instruction form does behind the forced-emulation prefix what it does without it, and on
device memory what it does on memory."""

from __future__ import annotations

import pytest

from tests.against.cases import case
from tests.against.forms import all_forms
from tests.kvm.emulator.conftest import MACHINES, MODELS
from tests.kvm.emulator.forced import Bench
from trapline.kvm import open_kvm

GROUPS = 3


@pytest.mark.parametrize("group", range(GROUPS))
@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("machine", range(len(MACHINES)), ids=["-".join(m) for m in MACHINES])
def test_emulated_forms_are_like_executed_ones(machine: int, bits: int, group: int) -> None:
    """All forms, spread over the machines; each machine gets other operands."""
    vendor, engine = MACHINES[machine]
    bench = Bench(open_kvm(cpu=MODELS[vendor], engine=engine, force_emulation_prefix=1))
    forms = all_forms(bits)[machine :: len(MACHINES)][group::GROUPS]
    different = []
    for form in forms:
        one = case(form, machine)
        if form.mnemonic_name.startswith("pushf"):
            continue  # pushes the TF of who steps here, which the emulator hides
        if bench.run(one, is_forced=True) != bench.run(one, is_forced=False):
            different.append((form.name, one.code.hex()))
    assert not different and len(forms) > 100


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("machine", range(len(MACHINES)), ids=["-".join(m) for m in MACHINES])
def test_device_memory_is_like_memory_to_every_form(machine: int, bits: int) -> None:
    """Half of the forms with a memory operand, spread over the machines."""
    vendor, engine = MACHINES[machine]
    kvm = open_kvm(cpu=MODELS[vendor], engine=engine)
    plain, device = Bench(kvm), Bench(kvm, has_device=True)
    forms = [form for form in all_forms(bits) if form.memory][machine :: 2 * len(MACHINES)]
    different = []
    for form in forms:
        one = case(form, machine + 1)
        if plain.run(one, is_forced=False) != device.run(one, is_forced=False):
            different.append((form.name, one.code.hex()))
    assert not different and len(forms) > 80 and device.accesses > len(forms)
