"""The matrix with a hypervisor that intercepts: exit fields, what is saved, what comes after."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import pytest

from tests.kvm.matrix import exits_model, modes
from tests.kvm.matrix.cases import Case, by_cause, by_company, by_history, everything, share
from tests.kvm.matrix.exits_model import Wish
from tests.kvm.matrix.guest_surface import Nested, Svm, Vmx
from tests.kvm.matrix.model import Processor
from tests.kvm.matrix.test_matrix import ENGINES, GUESTS, SHOWN, VENDORS

IS_DEEP = bool(os.environ.get("TRAPLINE_DEEP"))
WISHES = {
    "intel": (Wish(), Wish(db=True), Wish(bus_lock=True), Wish(db=True, bus_lock=True)),
    "amd": (
        Wish(),
        Wish(db=True),
        Wish(bus_lock=True),
        Wish(bus_lock=True, threshold=1),
        Wish(db=True, bus_lock=True),
        Wish(db=True, bus_lock=True, threshold=3),
    ),
}


def cases_for(wish: Wish, number: int) -> Iterable[Case]:
    """A guest that nobody intercepts is like a bare processor, which has been tried."""
    if IS_DEEP:
        return everything()
    found: Sequence[Case] = list(dict.fromkeys([*by_cause(), *by_company(), *by_history()]))
    found = found if wish.db or wish.bus_lock else found[::3]
    return share(share(found, number), number // 2)


def complaints(surface: Nested, vendor: str, wish: Wish, number: int) -> list[str]:
    found, processor = [], Processor(vendor)
    for case in cases_for(wish, number):
        if not case.fits(surface.mode, processor):
            continue
        code = b"".join(step.code for step in case.steps(surface.mode))
        start = case.start(surface.mode, surface.cpl, surface.place(code))
        situation = case.situation(surface.mode, surface.cpl, processor)
        expected = exits_model.expected(vendor, situation, wish, case.steps(surface.mode))
        if surface.mode.is_real:
            expected = exits_model.in_real_mode(expected)
        met = surface.run_with(start, wish)
        if met != expected:
            wanted, got = " ".join(map(str, expected)), " ".join(map(str, met))
            found.append(f"{wish} {case}:\n  expected {wanted}\n  and was  {got}")
        elif case.sum is not None and surface.operand(start, case.size) != case.sum:
            found.append(f"{wish} {case}: memory holds {surface.operand(start, case.size)}")
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("mode", "cpl"), GUESTS)
def test_what_a_hypervisor_gets(mode: str, cpl: int, vendor: str, engine: str) -> None:
    kind = Vmx if vendor == "intel" else Svm
    surface = kind(engine, modes.MODES[mode], cpl)
    number = GUESTS.index((mode, cpl)) + ENGINES.index(engine)
    wishes = WISHES[vendor]
    found = [text for wish in wishes for text in complaints(surface, vendor, wish, number)]
    assert not found, f"{len(found)} differ\n" + "\n".join(found[:SHOWN])
