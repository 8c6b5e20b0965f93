"""Every guest of the hypervisor's tests again, on an AMD processor.

What the vendors do differently is named below, and tested beside this file.
"""

from __future__ import annotations

import inspect
from types import ModuleType

from tests.kvm import (
    test_api,
    test_bus_lock,
    test_debug_regs,
    test_events,
    test_memory,
    test_system_registers,
)

MODULES = (
    test_api,
    test_bus_lock,
    test_debug_regs,
    test_events,
    test_memory,
    test_system_registers,
)
DIFFERENT = {
    "test_lbr_and_btf_are_dropped_silently_and_other_bits_are_gp": "LBR is virtualized",
    "test_each_bus_lock_exits_after_it_was_done": "before",
    "test_the_bus_lock_exit_comes_before_the_debug_exception": "and before the lock",
    "test_an_interrupt_without_if_fails_the_entry": "EVENTINJ does not look at IF",
    "test_intel_answers_beyond_its_last_leaf_with_the_last": "AMD answers zeros",
}


def shared(module: ModuleType) -> dict[str, object]:
    """The tests of a module that take a hypervisor of ours and expect nothing of Intel."""
    found = {}
    for name, test in vars(module).items():
        if not name.startswith("test_") or name in DIFFERENT or not inspect.isfunction(test):
            continue
        if {"kvm", "software"} & inspect.signature(test).parameters.keys():
            found[f"{name}_of_{module.__name__.rsplit('.', 1)[-1]}"] = test
    return found


for _module in MODULES:
    globals().update(shared(_module))


def test_every_difference_is_one_of_a_test() -> None:
    names = {name for module in MODULES for name in vars(module)}
    assert DIFFERENT.keys() <= names


def test_the_guests_were_found() -> None:
    assert len([name for name in globals() if name.startswith("test_")]) > 60
