"""The VMCS.  While it is current its guest-state area is the core's register file itself.

So entering and leaving copy nothing, as on silicon that caches the current VMCS.  What the fields
mean is checked in `entry`; nothing here runs a guest.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import TYPE_CHECKING, Final

from trapline.arch.registers import (
    CR0_PG,
    CR4_PAE,
    RFLAGS_FIXED_1,
    RFLAGS_RESERVED,
    RFLAGS_VM,
)
from trapline.arch.vmcs import MASKS, Field
from trapline.arch.vmx import ENTRY_IA32E_GUEST, PROC_SECONDARY
from trapline.processor.guest import VmExit
from trapline.processor.state import INDEX, SEGMENTS
from trapline.processor.vmx.intercepts import VmxGuest

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.memory.walk import Walker
    from trapline.processor.state import State

# Which checks of VM entry a change asks for again (Vmcs.dirty).
CONTROLS: Final = 1
HOST: Final = 2
GUEST: Final = 4

_SEGMENT_FIELDS = {
    Field[f"GUEST_{segment.upper()}_{suffix}"]: f"{segment}_{part}"
    for segment in SEGMENTS
    for suffix, part in (
        ("SELECTOR", "selector"),
        ("BASE", "base"),
        ("LIMIT", "limit"),
        ("AR_BYTES", "attributes"),
    )
}
_OTHER_FIELDS = {
    Field.GUEST_GDTR_BASE: "gdtr_base",
    Field.GUEST_GDTR_LIMIT: "gdtr_limit",
    Field.GUEST_IDTR_BASE: "idtr_base",
    Field.GUEST_IDTR_LIMIT: "idtr_limit",
    Field.GUEST_CR0: "cr0",
    Field.GUEST_CR3: "cr3",
    Field.GUEST_CR4: "cr4",
    Field.GUEST_DR7: "dr7",
    Field.GUEST_RSP: "rsp",
    Field.GUEST_IA32_DEBUGCTL: "debugctl",
    Field.GUEST_IA32_PAT: "pat",
    Field.GUEST_IA32_EFER: "efer",
    Field.GUEST_SYSENTER_CS: "sysenter_cs",
    Field.GUEST_SYSENTER_ESP: "sysenter_esp",
    Field.GUEST_SYSENTER_EIP: "sysenter_eip",
    Field.GUEST_PENDING_DBG_EXCEPTIONS: "pending_debug",
    Field.GUEST_ACTIVITY_STATE: "activity",
}
SLOTS: Final[dict[int, int]] = {
    field: INDEX[name] for field, name in (_SEGMENT_FIELDS | _OTHER_FIELDS).items()
}
"""Guest-state fields that are a register-file slot, by encoding."""

_MASKS: Final = {int(field): mask for field, mask in MASKS.items()}
_EXIT_FIELDS: Final[dict[int, str]] = {
    Field.VM_EXIT_REASON: "reason",
    Field.EXIT_QUALIFICATION: "qualification",
    Field.VM_EXIT_INTR_INFO: "interruption_info",
    Field.VM_EXIT_INTR_ERROR_CODE: "error_code",
    Field.IDT_VECTORING_INFO_FIELD: "vectoring_info",
    Field.IDT_VECTORING_ERROR_CODE: "vectoring_error_code",
    Field.VM_EXIT_INSTRUCTION_LEN: "instruction_length",
    Field.GUEST_PHYSICAL_ADDRESS: "guest_physical",
    Field.GUEST_LINEAR_ADDRESS: "guest_linear",
    Field.VMX_INSTRUCTION_INFO: "instruction_information",
}
_ENTRY_FIELDS: Final[dict[int, str]] = {
    Field.VM_ENTRY_INTR_INFO_FIELD: "entry_info",
    Field.VM_ENTRY_EXCEPTION_ERROR_CODE: "entry_error_code",
    Field.VM_ENTRY_INSTRUCTION_LEN: "entry_length",
}

_RIP: Final = int(Field.GUEST_RIP)
_RIP_SLOT: Final = INDEX["rip"]
_RFLAGS: Final = int(Field.GUEST_RFLAGS)
_INTERRUPTIBILITY: Final = int(Field.GUEST_INTERRUPTIBILITY_INFO)
_SHADOW_SLOT: Final = INDEX["interrupt_shadow"]
_NMI_SLOT: Final = INDEX["nmi_blocked"]
_ACTIVITY: Final = int(Field.GUEST_ACTIVITY_STATE)
_ACTIVITY_SLOT: Final = INDEX["activity"]
_CR0, _CR4 = int(Field.GUEST_CR0), int(Field.GUEST_CR4)
_PRIMARY: Final = int(Field.CPU_BASED_VM_EXEC_CONTROL)
_SECONDARY: Final = int(Field.SECONDARY_VM_EXEC_CONTROL)
_ENTRY: Final = int(Field.VM_ENTRY_CONTROLS)
_OWN_SLOTS: Final = (*SLOTS.values(), _RIP_SLOT, _SHADOW_SLOT, _NMI_SLOT)
_SHADOW, _NMI_BIT = 3, 8
_PDPTES: Final = {int(Field.GUEST_PDPTR0) + 2 * i: i for i in range(4)}


class Vmcs:
    """One VMCS: `read` and `write` by encoding, whether it is current or not.

    The event to inject and the last exit have attributes of their own: a hypervisor touches them
    at every exit.
    """

    __slots__ = (
        "_fields",
        "_odd_rflags",
        "_pdptes",
        "_slots",
        "_state",
        "_walker",
        "checked_events",
        "complaint",
        "dirty",
        "entry_error_code",
        "entry_info",
        "entry_length",
        "exit",
        "follows_lma",
        "guest",
        "has_msr_areas",
        "remembered",
        "rip_mask",
        "unloaded",
        "unsaved",
    )

    def __init__(self) -> None:
        self._fields: dict[int, int] = dict.fromkeys(map(int, Field), 0)
        self._fields[Field.VMCS_LINK_POINTER] = (1 << 64) - 1
        self._fields[_RFLAGS] = RFLAGS_FIXED_1
        self._slots: MutableSequence[int] | memoryview = [0] * len(INDEX)
        self._odd_rflags = 0  # bits of the field that no register has as they were written
        self._pdptes = [0, 0, 0, 0]
        self._walker: Walker | None = None
        self._state: State | None = None
        self.dirty = CONTROLS | HOST | GUEST
        self.complaint = ""
        """What the last refused entry was refused for, in words."""
        self.checked_events: set[int] = set()
        self.entry_info = 0
        self.entry_error_code = 0
        self.entry_length = 0
        self.exit = VmExit(0)
        self.guest: VmxGuest | None = None
        self.has_msr_areas = False
        self.remembered: tuple[list[int], list[int]] | None = None
        self.follows_lma = False
        """The guest may enter and leave IA-32e mode by itself; the entry control follows."""
        self.unloaded: tuple[tuple[int, int], ...] = ()
        """Registers that entry takes from the host instead of from here: slot and word."""
        self.unsaved: tuple[int, ...] = ()
        """Registers whose field exit leaves alone, by slot."""
        self.rip_mask = -1
        """RIP bits that call for a new look at the guest state when one of them is set."""

    # -- becoming current -----------------------------------------------------------------------

    def load(self, core: Core) -> None:
        """VMPTRLD: the guest-state area moves into the core's registers."""
        saved, state = self._slots, core.state
        for slot in _OWN_SLOTS:
            state.q[slot] = saved[slot]
        state.rflags = self._fields[_RFLAGS]
        self._odd_rflags = _odd_rflags(self._fields[_RFLAGS])
        self._walker = core.memory.walker
        self._walker.pdptes = self._pdptes
        self._slots, self._state = state.q, state
        self.guest = VmxGuest(core, self)
        self.dirty |= CONTROLS | GUEST

    def clear(self) -> None:
        """VMCLEAR, or another VMCS becoming current: the registers move back here."""
        if self._state is None:
            return
        current, saved = self._slots, [0] * len(INDEX)
        for slot in _OWN_SLOTS:
            saved[slot] = current[slot]
        self._fields[_RFLAGS] = self._state.rflags ^ self._odd_rflags
        assert self._walker is not None
        self._pdptes, self._walker = list(self._walker.pdptes), None
        self._slots, self._state, self.guest = saved, None, None

    def remember(self) -> None:
        """Keep the guest-state area as it is before an entry that may still fail."""
        if self.remembered is None:
            assert self._walker is not None
            words = [self._slots[slot] for slot in _OWN_SLOTS]
            self.remembered = words, list(self._walker.pdptes)

    def recall(self) -> None:
        """It has failed."""
        assert self.remembered is not None and self._walker is not None
        words, self._walker.pdptes[:] = self.remembered
        for slot, word in zip(_OWN_SLOTS, words, strict=True):
            self._slots[slot] = word
        self.dirty |= GUEST
        self.remembered = None

    @property
    def is_current(self) -> bool:
        return self._state is not None

    # -- VMREAD and VMWRITE ---------------------------------------------------------------------

    def read(self, field: int) -> int:
        """The value of a field, by its encoding."""
        if field == _RIP:
            return self._slots[_RIP_SLOT]
        slot = SLOTS.get(field)
        if slot is not None:
            return self._slots[slot]
        if field == _RFLAGS and self._state is not None:
            return self._state.rflags ^ self._odd_rflags
        if field == _INTERRUPTIBILITY:
            blocked = self._slots[_SHADOW_SLOT] | (_NMI_BIT if self._slots[_NMI_SLOT] else 0)
            return blocked | self._fields[field]
        if field in _PDPTES:
            pdptes = self._pdptes if self._walker is None else self._walker.pdptes
            return pdptes[_PDPTES[field]]
        name = _EXIT_FIELDS.get(field)
        if name is not None:
            return int(getattr(self.exit, name))
        name = _ENTRY_FIELDS.get(field)
        return self._fields[field] if name is None else int(getattr(self, name))

    def write(self, field: int, word: int) -> None:
        """Change a field; the next entry checks again what depends on it."""
        if field == _RIP:
            self._slots[_RIP_SLOT] = word
            if word & self.rip_mask:
                self.dirty |= GUEST
            return
        slot = SLOTS.get(field)
        if slot is not None:
            self._slots[slot] = word & _MASKS[field]
            if word or field != _ACTIVITY:
                self.dirty |= GUEST
        elif field == _RFLAGS:
            self._write_rflags(word)
        elif field == _INTERRUPTIBILITY:
            self._slots[_SHADOW_SLOT] = word & _SHADOW
            self._slots[_NMI_SLOT] = word >> 3 & 1
            self._fields[field] = word & ~(_SHADOW | _NMI_BIT) & _MASKS[field]
            if word:
                self.dirty |= GUEST
        else:
            self._write_other(field, word)

    def _write_rflags(self, word: int) -> None:
        old, self._odd_rflags = self.read(_RFLAGS), _odd_rflags(word)
        is_blocked = self._slots[_SHADOW_SLOT] or self._slots[_ACTIVITY_SLOT]
        if (word | old) & RFLAGS_VM or self._odd_rflags or (is_blocked and word != old):
            self.dirty |= GUEST
        self._fields[_RFLAGS] = word
        if self._state is not None:
            self._state.rflags = word

    def _write_other(self, field: int, word: int) -> None:
        name = _ENTRY_FIELDS.get(field)
        if name is not None:
            setattr(self, name, word & _MASKS[field])
            return
        name = _EXIT_FIELDS.get(field)
        if name is not None:
            setattr(self.exit, name, word)
            return
        if field in _PDPTES:
            pdptes = self._pdptes if self._walker is None else self._walker.pdptes
            pdptes[_PDPTES[field]] = word & _MASKS[field]
        else:
            self._fields[field] = word & _MASKS[field]
        self.dirty |= _DIRTIES[field >> 10 & 3]

    # -- what several checks ask ----------------------------------------------------------------

    def secondary(self) -> int:
        """The secondary controls, as far as the primary ones activate them."""
        if self._fields[_PRIMARY] & PROC_SECONDARY:
            return self._fields[_SECONDARY]
        return 0

    def has_pae_paging(self) -> bool:
        """Whether the guest will use PAE paging."""
        if not self.read(_CR0) & CR0_PG or not self.read(_CR4) & CR4_PAE:
            return False
        return not self._fields[_ENTRY] & ENTRY_IA32E_GUEST


def _odd_rflags(word: int) -> int:
    return (word ^ RFLAGS_FIXED_1) & (RFLAGS_RESERVED | RFLAGS_FIXED_1)


_DIRTIES = (CONTROLS, 0, GUEST, HOST)  # by the encoding's type
