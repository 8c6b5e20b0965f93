"""What system instructions and events may change, for comparing the two engines."""

from __future__ import annotations

from typing import Any

from tests.processor.long_mode import LongMode

from trapline.processor.state import GPR_NAMES, SEGMENTS

COMPARED = (
    *GPR_NAMES, "rip", "rflags", "cpl", "dr6", "dr7", "nmi_blocked", "interrupt_shadow",
    *(f"{name}_{part}" for name in SEGMENTS
      for part in ("selector", "base", "limit", "attributes")),
)  # fmt: skip


def outcome(machine: LongMode) -> dict[str, Any]:
    """What an instruction or an event may have changed, and the ring native code is in."""
    state = machine.state
    table = [ring for ring in ("user", "supervisor", "supervisor_ac")
             if state.tlb == getattr(state, f"tlb_{ring}")]  # fmt: skip
    return {name: getattr(state, name) for name in COMPARED} | {"tlb": table}
