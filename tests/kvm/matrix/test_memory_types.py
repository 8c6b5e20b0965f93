"""Which memory is write-back where two tables speak: EPT type, IPAT and PAT; host PAT and guest's.

A locked access to anything else is a bus lock (A.1), and the guest at CPL 3 is told.
"""

from __future__ import annotations

import pytest

from tests.kvm.matrix import modes
from tests.kvm.matrix.cases import Case, Cause
from tests.kvm.matrix.guest_surface import EPT, NPT, Nested, Svm, Vmx
from tests.kvm.matrix.model import WB
from tests.kvm.matrix.test_matrix import ENGINES
from trapline.arch.paging import EPT_IGNORE_PAT, PTE_PAT, PTE_PCD, PTE_PWT

LONG, CPL = modes.MODES["long"], 3
PAT_PAGES = {0: WB, 2: 0, 3: 1, 4: 4, 5: 5, 6: 7}  # page of DATA: its type by the guest's PAT
HOST_PAT = {0: WB, PTE_PWT: 4, PTE_PCD: 7, PTE_PCD | PTE_PWT: 0, PTE_PAT: WB}
MTRR_PAGES = {8: 0, 9: 1, 10: 4, 11: 5}


def is_told(surface: Nested, page: int) -> bool:
    """Whether LOCK XADD of a whole word in a page of DATA ends in #DB."""
    surface.core.memory.flush_frames()  # INVEPT, or a new ASID
    case = Case(cause="whole")
    code = b"".join(step.code for step in case.steps(LONG))
    start = case.start(LONG, CPL, surface.place(code))
    offset = Cause(page).offset(4)
    events = surface.run(type(start)(start.code, offset, start.stack_word, debugctl=4))
    assert events[-1].vector == 6
    return events[0].vector == 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ignores_pat", [False, True])
@pytest.mark.parametrize("kind", [0, 1, 4, 5, 6])
def test_ept_type_and_pat(kind: int, ignores_pat: bool, engine: str) -> None:
    """SDM 3C, "Memory Type Used for Translated Guest-Physical Addresses"."""
    surface = Vmx(engine, LONG, CPL)
    for page, pat in PAT_PAGES.items():
        number = (modes.DATA >> 12) + page
        entry = number << 12 | EPT | kind << 3
        surface.entry(number, entry | (EPT_IGNORE_PAT if ignores_pat else 0))
        is_write_back = kind == WB and (ignores_pat or pat == WB)
        assert is_told(surface, page) == (not is_write_back), (page, pat)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("flags", HOST_PAT)
def test_host_pat_and_guest_pat(flags: int, engine: str) -> None:
    """APM 2, "Combining Memory Types, MTRRs": WB only where host, guest and MTRR all say so."""
    surface = Svm(engine, LONG, CPL)
    for page, pat in PAT_PAGES.items():
        number = (modes.DATA >> 12) + page
        surface.entry(number, number << 12 | NPT | flags)
        is_write_back = pat == WB and HOST_PAT[flags] == WB
        assert is_told(surface, page) == (not is_write_back), (page, pat)
    for page in MTRR_PAGES:
        number = (modes.DATA >> 12) + page
        surface.entry(number, number << 12 | NPT | flags)
        assert is_told(surface, page), page


@pytest.mark.parametrize("engine", ENGINES)
def test_a_guest_without_lbr_virtualization_runs_with_the_hosts_debugctl(engine: str) -> None:
    """D.3: DEBUGCTL is swapped only with it; the host has BLD clear, whatever the VMCB holds."""
    surface = Svm(engine, LONG, CPL)
    assert is_told(surface, 2)
    surface.vmcb.write("virt_ext", 0)
    assert not is_told(surface, 2)
    assert surface.vmcb.read("dbgctl") == 4
    surface.vmcb.write("virt_ext", 1)
    assert is_told(surface, 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_page_tables_in_uncached_memory_lock_no_bus_for_the_guest(engine: str) -> None:
    """A.1, I: what the processor locks for itself (accessed and dirty flags) is not counted."""
    surface = Vmx(engine, LONG, CPL)
    for table in range(4):
        number = (modes.TABLES >> 12) + table
        surface.entry(number, number << 12 | EPT)
    assert not is_told(surface, 0)
