"""The VMCB.  While it is current its save area is the core's register file itself.

So VMRUN and #VMEXIT copy nothing.  What the fields mean to VMRUN is checked in `checks`; nothing
here runs a guest.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import TYPE_CHECKING, Final

from trapline.arch import svm
from trapline.arch import vmcb as layout
from trapline.arch.descriptor import AR_P, AR_UNUSABLE
from trapline.arch.registers import EFER_SVME, RFLAGS_FIXED_1, RFLAGS_VM
from trapline.processor.state import INDEX, SEGMENTS
from trapline.processor.svm.exit import SvmExit
from trapline.processor.svm.intercepts import SvmGuest

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.state import State

_PARTS: Final = {
    "selector": layout.SEGMENT_SELECTOR,
    "attributes": layout.SEGMENT_ATTRIBUTES,
    "limit": layout.SEGMENT_LIMIT,
    "base": layout.SEGMENT_BASE,
}
_TABLES: Final = ("gdtr", "idtr")
_RENAMED: Final = {"g_pat": "pat", "dbgctl": "debugctl"}
_PLAIN: Final = (
    *("cpl", "cr0", "cr2", "cr3", "cr4", "dr6", "dr7", "rip", "rsp", "rax", "star", "lstar"),
    *("cstar", "sfmask", "kernel_gs_base", "sysenter_cs", "sysenter_esp", "sysenter_eip"),
)
_EXIT_FIELDS: Final = {
    "exit_code": ("code", 0),
    "exit_code_hi": ("code", 32),
    "exit_info_1": ("info_1", 0),
    "exit_info_2": ("info_2", 0),
    "exit_int_info": ("int_info", 0),
    "exit_int_info_err": ("int_info", 32),
    "next_rip": ("next_rip", 0),
}


def _offsets() -> dict[str, layout.Slot]:
    """Every field by name, the parts of segments and the intercept words apart."""
    found = dict(layout.SLOTS)
    for name in layout.SLOTS:
        if name in SEGMENTS or name in _TABLES:
            at = found.pop(name).offset
            for part, slot in _PARTS.items():
                if name in SEGMENTS or part in ("limit", "base"):
                    found[f"{name}_{part}"] = layout.Slot(at + slot.offset, slot.size)
    del found["intercepts"]
    for word in range(layout.INTERCEPT_WORDS):
        found[f"intercept_{word}"] = layout.Slot(4 * word, 4)
    return {name: slot for name, slot in found.items() if not name.startswith("segment_")}


FIELDS: Final = _offsets()
_MASKS: Final = {name: (1 << 8 * slot.size) - 1 for name, slot in FIELDS.items()}
REGISTERS: Final[dict[str, int]] = {
    **{name: INDEX[name] for name in _PLAIN},
    **{name: INDEX[slot] for name, slot in _RENAMED.items()},
    **{f"{s}_{part}": INDEX[f"{s}_{part}"] for s in SEGMENTS for part in _PARTS},
    **{f"{s}_{part}": INDEX[f"{s}_{part}"] for s in _TABLES for part in ("limit", "base")},
}
"""Fields of the save area that are a register-file slot."""
_EFER: Final = INDEX["efer"]
_CR8, _SHADOW, _NMI = INDEX["cr8"], INDEX["interrupt_shadow"], INDEX["nmi_blocked"]
_OWN_SLOTS: Final = (*REGISTERS.values(), _EFER, _CR8, _SHADOW, _NMI)
_V_TPR: Final = 0xF
# Fields of which any word is as good as another, so that VMRUN need not look again.
_QUIET: Final = frozenset({"rip", "rsp", "rax", "cr2", "kernel_gs_base"})


class Vmcb:
    """One VMCB: `read` and `write` by the field's name, whether it is current or not.

    The event to inject, the last exit and the bus lock counter have attributes of their own.
    """

    __slots__ = (
        "_fields",
        "_slots",
        "_state",
        "_svme",
        "bus_lock_counter",
        "complaint",
        "dirty",
        "event_inj",
        "exit",
        "guest",
    )

    def __init__(self) -> None:
        self._fields: dict[str, int] = dict.fromkeys(FIELDS, 0)
        self._fields["rflags"] = RFLAGS_FIXED_1
        self._slots: MutableSequence[int] | memoryview = [0] * len(INDEX)
        self._state: State | None = None
        self._svme = 0
        self.dirty = True
        self.complaint = ""
        """What the last refused VMRUN was refused for, in words."""
        self.event_inj = 0
        """EVENTINJ with its error code in bits 63:32."""
        self.bus_lock_counter = 0
        self.exit = SvmExit(0)
        self.guest: SvmGuest | None = None

    def load(self, core: Core) -> None:
        """The save area moves into the core's registers."""
        saved, state = self._slots, core.state
        for slot in _OWN_SLOTS:
            state.q[slot] = saved[slot]
        state.rflags = self._fields["rflags"]
        self._slots, self._state = state.q, state
        self.guest = SvmGuest(core, self)
        self.dirty = True

    def clear(self) -> None:
        """Another VMCB becomes current: the registers move back here."""
        if self._state is None:
            return
        current, saved = self._slots, [0] * len(INDEX)
        for slot in _OWN_SLOTS:
            saved[slot] = current[slot]
        self._fields["rflags"] = self._state.rflags
        self._slots, self._state, self.guest = saved, None, None

    # -- fields -----------------------------------------------------------------------------------

    def read(self, name: str) -> int:
        """The word of a field."""
        slot = REGISTERS.get(name)
        if slot is not None:
            word = self._slots[slot]
            if not name.endswith("_attributes"):
                return word
            return layout.attributes_of_rights(word & ~AR_P if word & AR_UNUSABLE else word)
        match name:
            case "rflags":
                return self._fields[name] if self._state is None else self._state.rflags
            case "efer":
                return self._slots[_EFER] | self._svme
            case "int_state":
                return self._fields[name] | (1 if self._slots[_SHADOW] else 0)
            case "int_ctl":
                blocked = svm.INT_CTL_V_NMI_BLOCKING if self._slots[_NMI] else 0
                return self._fields[name] | self._slots[_CR8] | blocked
            case "event_inj" | "event_inj_err":
                return self.event_inj >> (32 if name == "event_inj_err" else 0) & 0xFFFFFFFF
            case "bus_lock_counter":
                return self.bus_lock_counter
        if name in _EXIT_FIELDS:
            attribute, shift = _EXIT_FIELDS[name]
            return int(getattr(self.exit, attribute)) >> shift & _MASKS[name]
        return self._fields[name]

    def write(self, name: str, word: int) -> None:
        """Change a field; the next VMRUN checks again what may have become wrong."""
        word &= _MASKS[name]
        slot = REGISTERS.get(name)
        if slot is not None:
            if name.endswith("_attributes"):
                word = layout.rights_of_attributes(word)
                word |= 0 if word & AR_P else AR_UNUSABLE
            self._slots[slot] = word
            if name not in _QUIET:
                self.dirty = True
            return
        match name:
            case "rflags":
                self._write_rflags(word)
            case "efer":
                self._slots[_EFER], self._svme = word & ~EFER_SVME, word & EFER_SVME
                self.dirty = True
            case "int_state":
                self._slots[_SHADOW] = word & svm.INT_STATE_SHADOW
                self._fields[name] = word & ~svm.INT_STATE_SHADOW
            case "int_ctl":
                self._write_int_ctl(word)
            case "event_inj":
                self.event_inj = self.event_inj & ~0xFFFFFFFF | word
            case "event_inj_err":
                self.event_inj = self.event_inj & 0xFFFFFFFF | word << 32
            case "bus_lock_counter":
                self.bus_lock_counter = word
            case _:
                self._write_other(name, word)

    def _write_rflags(self, word: int) -> None:
        if (word ^ self.read("rflags")) & RFLAGS_VM:
            self.dirty = True
        self._fields["rflags"] = word
        if self._state is not None:
            self._state.rflags = word

    def _write_int_ctl(self, word: int) -> None:
        """V_TPR is CR8, and V_NMI_BLOCKING what the processor blocks NMIs by."""
        self._slots[_CR8] = word & _V_TPR
        if word & svm.INT_CTL_V_NMI_ENABLE:
            self._slots[_NMI] = 1 if word & svm.INT_CTL_V_NMI_BLOCKING else 0
        self._fields["int_ctl"] = word & ~(_V_TPR | svm.INT_CTL_V_NMI_BLOCKING)
        if self.guest is not None:
            self.guest.watch_virtual_interrupts(word)

    def _write_other(self, name: str, word: int) -> None:
        if name in _EXIT_FIELDS:
            attribute, shift = _EXIT_FIELDS[name]
            old = int(getattr(self.exit, attribute)) & ~(_MASKS[name] << shift)
            setattr(self.exit, attribute, old | word << shift)
            return
        if self._fields[name] != word:
            self._fields[name] = word
            self.dirty = True

    def intercept(self, number: int, wanted: bool = True) -> None:
        """Set or clear an intercept by its number over the whole vector."""
        name, mask = f"intercept_{number // 32}", svm.intercept_mask(number)
        old = self._fields[name]
        self.write(name, old | mask if wanted else old & ~mask)

    def intercepts(self, number: int) -> bool:
        return bool(self._fields[f"intercept_{number // 32}"] & svm.intercept_mask(number))

    def image(self) -> bytes:
        """The VMCB as it lies in memory (APM 2, appendix B)."""
        page = bytearray(layout.VMCB_SIZE)
        for name, (offset, size) in FIELDS.items():
            page[offset : offset + size] = self.read(name).to_bytes(size, "little")
        return bytes(page)
