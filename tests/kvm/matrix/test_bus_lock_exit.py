"""KVM_CAP_X86_BUS_LOCK_EXIT over the matrix: one exit a bus lock, at any CPL, whatever BLD says.

Intel exits when the lock is done, AMD before it; then the debug exception comes as without it.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.kvm.matrix import exits_model, modes
from tests.kvm.matrix.cases import Case, by_cause, by_company, everything, share
from tests.kvm.matrix.exits_model import Exit, Wish
from tests.kvm.matrix.model import Event, Processor
from tests.kvm.matrix.surface import ENOUGH, Start, Virtual
from tests.kvm.matrix.test_matrix import ENGINES, GUESTS, IS_DEEP, SHOWN, VENDORS
from trapline.kvm import abi, exits

_GD = 1 << 13
EXIT_X86_BUS_LOCK, RUN_X86_BUS_LOCK = 33, 2  # G.2


class Exiting(Virtual):
    """A vCPU of a VM that wants to know of every bus lock."""

    def set_up_vm(self) -> None:
        self.vm.enable_cap(abi.Capability.X86_BUS_LOCK_EXIT, abi.BUS_LOCK_DETECTION_EXIT)

    def run_and_note(self, start: Start) -> list[Event | Exit]:
        self._met: list[Event | Exit] = []
        self._base = self.place(start.code) + self.mode.code_offset
        self.run(start)
        return self._met

    def go(self) -> None:
        for _ in range(ENOUGH):
            answer = self.vcpu.run()
            if not isinstance(answer, exits.X86BusLock):
                assert isinstance(answer, exits.Hlt), answer
                assert not self.vcpu.flags
                return
            debugregs = self.vcpu.get_debugregs()
            rip, has_gd = self.get("rip") - self._base, bool(debugregs.dr7 & _GD)
            found = Exit(EXIT_X86_BUS_LOCK, (self.vcpu.flags,), rip, debugregs.dr6, has_gd)
            self._met.append(found)
        raise AssertionError("bus lock exits for ever")

    def look(self, at: int) -> Event:
        event = super().look(at)
        self._met.append(event)
        return event


def expected(case: Case, surface: Exiting, vendor: str) -> list[Event | Exit]:
    """E.8: what the processor tells KVM (C.5, D.2) is what KVM tells userspace."""
    mode, processor = surface.mode, Processor(vendor, "kvm")
    situation = case.situation(mode, surface.cpl, processor)
    steps, wish = case.steps(mode), Wish(bus_lock=True)
    found = exits_model.expected(vendor, situation, wish, steps)
    if mode.is_real:
        found = exits_model.in_real_mode(found)
    return [
        Exit(EXIT_X86_BUS_LOCK, (RUN_X86_BUS_LOCK,), one.rip, one.dr6, one.gd)
        if isinstance(one, Exit)
        else one
        for one in found
    ]


def chosen(number: int) -> Iterable[Case]:
    if IS_DEEP:
        return everything()
    return share(share([*by_cause(), *by_company()], number), number // 2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("mode", "cpl"), GUESTS)
def test_every_bus_lock_exits_once(mode: str, cpl: int, vendor: str, engine: str) -> None:
    surface, found = Exiting(vendor, engine, modes.MODES[mode], cpl), []
    for case in chosen(GUESTS.index((mode, cpl)) + 2 * ENGINES.index(engine)):
        if not case.fits(surface.mode, Processor(vendor, "kvm")):
            continue
        code = b"".join(step.code for step in case.steps(surface.mode))
        start = case.start(surface.mode, cpl, surface.place(code))
        wanted, met = expected(case, surface, vendor), surface.run_and_note(start)
        if met != wanted or (case.sum is not None and surface.operand(start, 4) & 1 != case.sum):
            texts = " ".join(map(str, wanted)), " ".join(map(str, met))
            found.append(f"{case}:\n  expected {texts[0]}\n  and was  {texts[1]}")
    assert not found, f"{len(found)} differ\n" + "\n".join(found[:SHOWN])
