"""The VM over a vendor made of a script, and the wall between the hypervisor and the vendors."""

from __future__ import annotations

import threading

import pytest

from tests.house.imports import imports, within
from tests.house.tree import sources
from tests.kvm.scripted.backend import ScriptedBackend, ScriptedPlatform
from tests.kvm.scripted.bench import Bench
from trapline.kvm import abi, exits
from trapline.kvm.backend import Answer
from trapline.kvm.system import SoftwareKvm
from trapline.kvm.vcpu import SoftwareVcpu


def test_a_new_memory_map_is_taken_before_the_next_entry(bench: Bench) -> None:
    bench.vm.set_user_memory_region(0, 0, 0, 0x1000, 0x10000)
    bench.run(exits.Hlt())
    assert bench.asked() == [("enter",)]  # more memory: nothing that is known becomes wrong
    assert bench.backend.slots.host(0x10) == 0x10010
    bench.vm.set_user_memory_region(0, 0, 0, 0, 0)
    assert bench.platform.forgotten == [(0x10000, 0x1000)]
    assert bench.backend.slots.find(0) is None
    bench.run(None, exits.Hlt())
    assert bench.asked() == [("reload memory",), ("enter",), ("enter",)]


def test_a_guest_that_runs_is_called_out_of_an_old_map(bench: Bench) -> None:
    bench.vm.set_user_memory_region(0, 0, 0, 0x1000, 0x10000)
    kicked = threading.Event()
    bench.backend.kick = kicked.set  # type: ignore[method-assign]

    def waits(vcpu: SoftwareVcpu, backend: ScriptedBackend) -> Answer:
        vcpu.in_guest = True
        other = threading.Thread(target=bench.vm.set_user_memory_region, args=(0, 0, 0, 0, 0))
        other.start()
        assert kicked.wait(60)
        assert bench.platform.forgotten == []  # not while somebody may still use it
        vcpu.in_guest = False
        other.join()
        return exits.Hlt()

    assert bench.run(waits) == exits.Hlt()
    assert bench.platform.forgotten == [(0x10000, 0x1000)]


def test_bus_lock_exits_are_the_platforms_to_offer() -> None:
    for offered in (True, False):
        platform = ScriptedPlatform(offered)
        kvm = SoftwareKvm(lambda platform=platform: platform)  # type: ignore[misc]
        assert bool(kvm.check_extension(abi.Capability.X86_BUS_LOCK_EXIT)) is offered
        vm = kvm.create_vm()
        vm.enable_cap(abi.Capability.X86_BUS_LOCK_EXIT, abi.BUS_LOCK_DETECTION_EXIT)
        assert platform.bus_lock_exits is offered


def test_a_child_keeps_the_one_processor_that_came_along(bench: Bench) -> None:
    other = bench.vm.create_vcpu(1)
    assert bench.vm.keep(bench.vcpu)
    assert ("keep alone",) in bench.asked()
    bench.vcpu.report_counts()
    assert bench.asked() == [("report counts",)]
    other.close()


# -- the wall --------------------------------------------------------------------------------------

VENDORS = (
    *("kvm.vmx", "kvm.svm", "kvm.core_backend", "kvm.silicon", "kvm.tdp", "kvm.emulator"),
    *("arch.vmx", "arch.vmcs", "arch.svm", "arch.vmcb", "processor"),
)


def needed(start: str) -> set[str]:
    """The modules of ours that one imports, and those that they import; for types alone, too."""
    files = {source.module: source for source in sources("src/trapline")}
    found: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in found or module not in files:
            continue
        found.add(module)
        for name in imports(files[module]):
            ours = name.removeprefix("trapline.")
            if ours != name:
                waiting.append(ours if ours in files else ours.rpartition(".")[0])
    return found


@pytest.mark.parametrize("module", ["kvm.vm", "kvm.vcpu", "kvm.system", "kvm.events"])
def test_no_vendor_is_needed(module: str) -> None:
    known = needed(module)
    assert "kvm.backend" in known
    assert [one for one in known if any(within(one, vendor) for vendor in VENDORS)] == []
