"""The reference's worked table of DR6 (A.6), row by row, wherever a row can be had.

Payload or exit qualification, and DR6 as the handler finds it, are the table's own numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.kvm.matrix import modes
from tests.kvm.matrix.cases import Case
from tests.kvm.matrix.exits_model import VMX_DB, Exit, Wish
from tests.kvm.matrix.guest_surface import Vmx
from tests.kvm.matrix.model import Event
from tests.kvm.matrix.surface import Bare, Start, Surface, Virtual
from tests.kvm.matrix.test_matrix import ENGINES, VENDORS
from trapline.kvm import abi, quirks

LONG = modes.MODES["long"]


@dataclass(frozen=True)
class Row:
    """`after` is DR6 on the silicon, `upstream` KVM's where that is another."""

    case: Case
    payload: int
    after: int
    cpl: int = 3
    upstream: int | None = None
    rip: int = 4
    code: bytes = b""


ROWS = {
    "bus lock only": Row(Case(), 0x800, 0xFFFF07F0),
    "bus lock + single step": Row(Case(tf=True), 0x4800, 0xFFFF47F0),
    "bus lock + data breakpoint 1": Row(Case(watch="data"), 0x802, 0xFFFF07F2),
    "bus lock + TF + bp 0 and 3": Row(Case(tf=True, watch="two"), 0x4809, 0xFFFF47F9),
    "single step only, bit 11 left 0": Row(
        Case(cause="whole", tf=True, dr6=0xFFFF07F0), 0x4000, 0xFFFF47F0, upstream=0xFFFF4FF0
    ),
    "ICEBP": Row(Case(), 0, 0xFFFF0FF0, rip=1, code=b"\xf1\x0f\x0b"),
    "general detect": Row(
        Case(gd=True), 0x2000, 0xFFFF2FF0, cpl=0, rip=0, code=b"\x0f\x21\xc0\x0f\x0b"
    ),
}
named = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


def start_of(row: Row, surface: Surface) -> Start:
    if row.code:
        dr7 = 0x2400 if row.case.gd else 0x400
        return Start(row.code, 0, 0x100, dr7=dr7)
    code = b"".join(step.code for step in row.case.steps(LONG))
    return row.case.start(LONG, row.cpl, surface.place(code))


@named
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("vendor", VENDORS)
def test_on_the_bare_processor(row: Row, vendor: str, engine: str) -> None:
    surface = Bare(vendor, engine, LONG, row.cpl)
    assert surface.run(start_of(row, surface))[0] == Event(1, row.rip, row.after)


@named
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("vendor", VENDORS)
def test_under_the_hypervisor(row: Row, vendor: str, engine: str) -> None:
    surface = Virtual(vendor, engine, LONG, row.cpl)
    assert surface.run(start_of(row, surface))[0] == Event(1, row.rip, row.after)


@named
def test_under_the_hypervisor_as_upstream(row: Row) -> None:
    surface = Virtual("intel", "jit", LONG, row.cpl, quirks=quirks.EVERY)
    after = row.after if row.upstream is None else row.upstream
    assert surface.run(start_of(row, surface))[0] == Event(1, row.rip, after)


@named
@pytest.mark.parametrize("engine", ENGINES)
def test_as_an_exit_qualification(row: Row, engine: str) -> None:
    """C.1: the causes alone, whatever DR6 held; and DR6 as it was (C.2).  ICEBP has type 5, and
    RIP is the instruction."""
    surface = Vmx(engine, LONG, row.cpl)
    start, is_icebp = start_of(row, surface), row.code[:1] == b"\xf1"
    surface.wish = Wish(db=True)
    surface.run_first(start)
    exit = surface.leave()
    information, rip = (0x80000501, 0) if is_icebp else (VMX_DB, row.rip)
    assert exit == Exit(0, (information, row.payload), rip, start.dr6, row.case.gd)


@named
@pytest.mark.parametrize("vendor", VENDORS)
def test_as_a_payload(row: Row, vendor: str) -> None:
    """E.11: KVM_SET_VCPU_EVENTS with a pending #DB and its payload."""
    surface = Virtual(vendor, "interp", LONG, 0)
    surface.vm.enable_cap(abi.Capability.EXCEPTION_PAYLOAD, 1)
    surface.begin(Start(b"\x0f\x0b", 0, 0, dr6=row.case.dr6), {"rip": surface.place(b"\x0f\x0b")})
    surface.set("rsp", modes.stack_pointer(LONG, 0))
    events = surface.vcpu.get_vcpu_events()
    events.exception_pending, events.exception_nr = 1, 1
    events.exception_has_payload, events.exception_payload = 1, row.payload
    events.flags |= abi.VCPUEVENT_VALID_PAYLOAD
    surface.vcpu.set_vcpu_events(events)
    surface.go()
    assert surface.get("rbx") == row.after
    assert surface.dr6() == row.after
