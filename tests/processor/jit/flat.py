"""A bare processor for the fast engine's tests: flat 64-bit code at CPL 0 over RAM, no paging.

Not a state real hardware can be in (long mode wants paging), but every access still passes the
native tables, and a test can put code and data where it likes.
"""

from __future__ import annotations

from trapline.processor.cluster import Cluster
from trapline.processor.core import Core
from trapline.processor.fault import Fault
from trapline.processor.memory import Ram

CODE, DATA, STACK = 0x10000, 0x20000, 0x40000
UD2 = b"\x0f\x0b"


def flat_core(engine: str = "jit", bus: Ram | None = None, cluster: Cluster | None = None) -> Core:
    core = Core("max", bus or Ram(1 << 20), engine=engine, cluster=cluster)
    state = core.state
    state.cr0, state.cr4, state.efer = 0x11, 0x620, 0x500
    state.cs_attributes, state.ss_attributes = 0xA09B, 0xC093
    state.mxcsr, state.fcw, state.rsp = 0x1F80, 0x37F, STACK
    core.msrs.mtrrs.write(0x2FF, 0x806)
    core.memory.mode_changed()
    core.memory.privilege_changed()
    return core


def run_to_fault(core: Core, rip: int = CODE, limit: int = 10_000) -> Fault:
    """Run until an instruction faults (a test's code ends with UD2); that fault."""
    core.state.rip = rip
    assert isinstance(core.bus, Ram)
    for _ in range(limit):
        try:
            if core.engine is None:
                core.interpret()
            else:
                core.engine.run()
        except Fault as fault:
            return fault
    raise AssertionError(f"no fault; RIP is {core.state.rip:#x}")


def load_code(core: Core, content: bytes, at: int = CODE) -> None:
    """Put code into RAM as a device would, and let the processor know."""
    assert isinstance(core.bus, Ram)
    core.bus.load(at, content)
    core.flush_translations(core.bus.start + at)
