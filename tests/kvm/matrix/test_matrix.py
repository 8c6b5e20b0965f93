"""The matrix: vendor, mode, CPL, cause and company of a bus lock, bare and under the hypervisor, on
both engines.  What must happen is in `model`; nothing of it comes from the code under test.

TRAPLINE_DEEP=1 runs the whole product (some ten minutes), else what `cases.selection` picks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest

from tests.kvm.matrix import modes
from tests.kvm.matrix.cases import Case, everything, selection, share
from tests.kvm.matrix.model import Processor
from tests.kvm.matrix.surface import Bare, Surface, Virtual
from trapline.kvm import quirks

IS_DEEP = bool(os.environ.get("TRAPLINE_DEEP"))
SHOWN = 6  # differences that a failure lists

VENDORS, ENGINES = ("intel", "amd"), ("interp", "jit")
GUESTS = [(mode.name, cpl) for mode in modes.MODES.values() for cpl in mode.cpls]


def complaints(surface: Surface, processor: Processor, cases: Iterable[Case]) -> list[str]:
    """One text for each case whose outcome is not the model's."""
    found, mode, count = [], surface.mode, 0
    for case in cases:
        if not case.fits(mode, processor):
            continue
        count += 1
        code = b"".join(step.code for step in case.steps(mode))
        start = case.start(mode, surface.cpl, surface.place(code))
        expected = case.outcome(mode, surface.cpl, processor)
        events = surface.run(start)
        if events != expected:
            wanted, got = " ".join(map(str, expected)), " ".join(map(str, events))
            found.append(f"{case}:\n  expected {wanted}\n  and was  {got}")
        elif case.sum is not None and surface.operand(start, case.size) != case.sum:
            found.append(f"{case}: memory holds {surface.operand(start, case.size)}")
    assert count > 10, "hardly any case fits this mode"
    return found


def chosen(layer: str, guest: tuple[str, int], engine: str, has_bld: bool = True) -> Iterable[Case]:
    """The cases for one guest on one engine."""
    if IS_DEEP:
        return everything()
    number = GUESTS.index(guest) + ENGINES.index(engine)
    return share(selection(layer, has_bld), number)


def check(surface: Surface, processor: Processor, cases: Iterable[Case]) -> None:
    found = complaints(surface, processor, cases)
    assert not found, f"{len(found)} differ\n" + "\n".join(found[:SHOWN])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("mode", "cpl"), GUESTS)
def test_the_bare_processor(mode: str, cpl: int, vendor: str, engine: str) -> None:
    """With bus lock detection, and on a processor that has none."""
    for has_bld in (True, False):
        surface = Bare(vendor, engine, modes.MODES[mode], cpl, has_bld)
        cases = chosen("silicon", (mode, cpl), engine, has_bld)
        check(surface, Processor(vendor, "silicon", has_bld), cases)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("mode", "cpl"), GUESTS)
def test_the_hypervisor(mode: str, cpl: int, vendor: str, engine: str) -> None:
    """Feature shown, and hidden: userspace may set BLD then; what follows does not ask CPUID."""
    for is_shown in (True, False):
        surface = Virtual(vendor, engine, modes.MODES[mode], cpl, is_shown)
        cases = chosen("kvm", (mode, cpl), engine, is_shown)
        check(surface, Processor(vendor, "kvm"), cases)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("mode", "cpl"), GUESTS)
def test_the_hypervisor_as_upstream(mode: str, cpl: int, vendor: str) -> None:
    """All quirks on: what Linux's KVM makes of the same guests."""
    surface = Virtual(vendor, "jit", modes.MODES[mode], cpl, quirks=quirks.EVERY)
    cases = chosen("upstream", (mode, cpl), "jit")
    check(surface, Processor(vendor, "upstream"), cases)
