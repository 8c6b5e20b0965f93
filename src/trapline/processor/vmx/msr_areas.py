"""The lists of MSRs that VM entry loads, and that VM exit stores and loads.

SDM 3C, "Loading MSRs" and "Saving MSRs".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arch import msr
from trapline.arch.vmcs import Field
from trapline.processor.fault import Fault
from trapline.processor.memory.host import load, store
from trapline.processor.vmx.capability import MSR_LIST_LIMIT

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.vmx.vmcs import Vmcs

_ENTRY_SIZE: Final = 16
_NEVER_LOADED: Final = (msr.IA32_FS_BASE, msr.IA32_GS_BASE)


def load_on_entry(core: Core, vmcs: Vmcs) -> int:
    """0, or the number (from 1) of the entry that cannot be loaded."""
    return _load(core, vmcs, Field.VM_ENTRY_MSR_LOAD_ADDR, Field.VM_ENTRY_MSR_LOAD_COUNT)


def store_on_exit(core: Core, vmcs: Vmcs) -> None:
    """Store the guest's; what cannot be is left out.

    Silicon goes into VMX abort there, and in `load_on_exit`, from which nothing returns.
    """
    start = vmcs.read(Field.VM_EXIT_MSR_STORE_ADDR)
    for i in range(min(vmcs.read(Field.VM_EXIT_MSR_STORE_COUNT), MSR_LIST_LIMIT)):
        host = core.bus.host(start + _ENTRY_SIZE * i)
        if host is not None:
            _store(core, host)


def load_on_exit(core: Core, vmcs: Vmcs) -> None:
    """Load the host's, up to the first that cannot be."""
    _load(core, vmcs, Field.VM_EXIT_MSR_LOAD_ADDR, Field.VM_EXIT_MSR_LOAD_COUNT)


def _load(core: Core, vmcs: Vmcs, area: Field, count: Field) -> int:
    start = vmcs.read(area)
    for i in range(vmcs.read(count)):
        host = core.bus.host(start + _ENTRY_SIZE * i)
        index = load(host, 8) if host is not None else _NEVER_LOADED[0]
        is_x2apic = msr.X2APIC_FIRST <= index <= msr.X2APIC_LAST
        is_late = i >= MSR_LIST_LIMIT
        if host is None or is_late or index >> 32 or index in _NEVER_LOADED or is_x2apic:
            return i + 1
        try:
            core.msrs.write(index, load(host + 8, 8))
        except Fault:
            return i + 1
    return 0


def _store(core: Core, host: int) -> None:
    index = load(host, 8)
    if index >> 32:
        return
    try:
        store(host + 8, 8, core.msrs.read(index))
    except Fault:
        return
