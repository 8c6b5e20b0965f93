"""A hypervisor's wishes by script: what is intercepted, and what the core asked."""

from __future__ import annotations

from typing import Any, NoReturn

from trapline.processor.guest import NESTED_EPT, Leave, VmExit


class ScriptedGuest:
    """The `Guest` protocol: leaves for the questions named in `wanted`, notes all of them."""

    def __init__(self, *wanted: str) -> None:
        self.wanted = set(wanted)
        self.mov_dr_exits, self.io_exits = "dr" in self.wanted, "io" in self.wanted
        self.asked: list[tuple[Any, ...]] = []
        self.ept_pointer: int | None = None
        self.nested_format = NESTED_EPT
        self.watches = 0
        self.vectoring_info = self.vectoring_error_code = 0
        self.tsc_offset = 0
        self.bus_lock_exits = "bus_lock" in self.wanted
        self.bus_lock_threshold = "before bus_lock" in self.wanted
        self.control: dict[int, int] = {}

    def _ask(self, question: str, *details: Any) -> None:
        self.asked.append((question, *details))
        if question in self.wanted:
            raise Leave(VmExit(0))

    def intercept_exception(
        self, vector: int, error_code: int | None, payload: int, kind: int, length: int
    ) -> None:
        self._ask(f"exception {vector}", error_code, payload, kind, length)

    def intercept_triple_fault(self) -> NoReturn:
        self.asked.append(("triple fault",))
        raise Leave(VmExit(2))

    def intercept(self, instruction: str, length: int, operand: int = 0) -> None:
        self._ask(instruction, length, operand)

    def intercept_io(
        self,
        port: int,
        size: int,
        is_input: bool,
        length: int,
        string: int = 0,
        linear: int = 0,
    ) -> None:
        self._ask("io", port, size, is_input, length, string, linear)

    def intercept_msr(self, index: int, is_write: bool, length: int) -> None:
        self._ask("msr", index, is_write, length)

    def intercept_dr(self, register: int, is_read: bool, gpr: int, length: int) -> None:
        self._ask("dr", register, is_read, gpr, length)

    def read_cr(self, register: int, gpr: int, length: int) -> int:
        self._ask("read cr", register, gpr, length)
        return self.control.get(register, 0)

    def write_cr(self, register: int, source: int, gpr: int, length: int) -> int:
        self._ask("write cr", register, source, gpr, length)
        return self.control.get(register, source)

    def write_cr0_part(self, source: int, is_clts: bool, length: int) -> int | None:
        self._ask("cr0 part", source, is_clts, length)
        return None

    def intercept_task_switch(self, selector: int, source: int, length: int) -> NoReturn:
        self.asked.append(("task switch", selector, source, length))
        raise Leave(VmExit(9))

    def intercept_interrupt(self) -> None:
        self._ask("interrupt")

    def intercept_nmi(self) -> None:
        self._ask("nmi")

    def intercept_boundary(self, before_traps: bool) -> None:
        self._ask("boundary", before_traps)

    def before_bus_lock(self) -> None:
        self._ask("before bus_lock")

    def bus_lock_exit(self) -> None:
        self._ask("bus_lock")

    def ept_violation(
        self, guest_physical: int, access: int, allowed: int, linear: int | None, is_walk: bool
    ) -> NoReturn:
        self.asked.append(("ept violation", guest_physical, access, allowed, linear, is_walk))
        raise Leave(VmExit(48))

    def ept_misconfiguration(self, guest_physical: int) -> NoReturn:
        self.asked.append(("ept misconfiguration", guest_physical))
        raise Leave(VmExit(49))
