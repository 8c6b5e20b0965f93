"""Guests for what is not a bus lock: segments, gates and tasks of one's own, on both surfaces."""

from __future__ import annotations

import struct
from collections.abc import Callable

from tests.kvm.matrix import modes
from tests.kvm.matrix.model import Event
from tests.kvm.matrix.surface import Bare, Start, Surface, Virtual
from trapline.arch import descriptor as d
from trapline.arch.descriptor import Gate, SystemType, build_gate

FREE = 0x40  # the first selector that is the tests' own
OTHER = 0x14000  # code away from the guest's start
LOG = 0x48000  # a page of plain data
GDT_SIZE = 0x100

SURFACES: dict[str, Callable[[str, int], Surface]] = {
    f"{layer}-{vendor}-{engine}": (
        lambda mode, cpl, kind=kind, vendor=vendor, engine=engine: kind(  # type: ignore[misc]
            vendor, engine, modes.MODES[mode], cpl
        )
    )
    for layer, kind in (("bare", Bare), ("kvm", Virtual))
    for vendor in ("intel", "amd")
    for engine in ("interp", "jit")
}


class Laboratory:
    """One guest whose tables a test fills before it starts."""

    def __init__(self, name: str, mode: str, cpl: int = 0) -> None:
        self.surface = SURFACES[name](mode, cpl)
        self.is_amd = "-amd-" in name
        self.memory, self.mode = self.surface.memory, self.surface.mode
        # What DS, ES, FS and GS hold, for a task that loads them again.
        rights = d.AR_DATA16 if self.mode.is_segmented else d.AR_DATA32
        base, limit = (modes.DATA, 0xFFFF) if self.mode.is_segmented else (0, d.FLAT_LIMIT)
        self.segment(modes.DATA_SELECTOR, base, limit, d.with_dpl(rights, cpl))

    def segment(self, selector: int, base: int, limit: int, rights: int) -> None:
        """A descriptor of the GDT."""
        word = d.build_segment(base, limit, rights)
        self.memory.write(modes.GDT + (selector & ~7), struct.pack("<Q", word))

    def gate(
        self, selector: int, target: int, offset: int, kind: int, dpl: int, count: int = 0
    ) -> None:
        """A call gate or a task gate in the GDT."""
        words = build_gate(Gate(target, offset, kind, dpl, True, count))
        size = 2 if self.mode.is_long else 1
        self.memory.write(modes.GDT + (selector & ~7), struct.pack(f"<{size}Q", *words[:size]))

    def interrupt(self, vector: int, target: int, offset: int, kind: int, dpl: int = 0) -> None:
        """An entry of the IDT."""
        words = build_gate(Gate(target, offset, kind, dpl, True))
        size = 2 if self.mode.is_long else 1
        at = modes.IDT + 8 * size * vector
        self.memory.write(at, struct.pack(f"<{size}Q", *words[:size]))

    def task(self, at: int, **fields: int) -> None:
        """A 32-bit TSS by the names of its fields (SDM 3A, "32-Bit Task-State Segment")."""
        order = (
            *("link", "esp0", "ss0", "esp1", "ss1", "esp2", "ss2", "cr3", "eip", "eflags"),
            *("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"),
            *("es", "cs", "ss", "ds", "fs", "gs", "ldt", "trap"),
        )
        words = [fields.get(name, 0) for name in order]
        self.memory.write(at, struct.pack("<26I", *words))
        self.memory.write(at + 0x66, struct.pack("<H", 0x68))

    def page(self, linear: int, clear: int = 0, set_: int = 0) -> None:
        """Change the flags of a page of 4 KiB, before the guest has touched it."""
        levels = {"32-bit": 2, "PAE": 3, "4-level": 4, "5-level": 5}[self.mode.paging]
        size = 4 if levels == 2 else 8
        at = modes.TABLES + 0x1000 * (levels - 1) + size * (linear >> 12)
        word = self.word(at, size) & ~clear | set_
        self.memory.write(at, word.to_bytes(size, "little"))

    def put(self, at: int, code: str) -> int:
        """Code in hexadecimal, spaces welcome."""
        self.memory.write(at, bytes.fromhex(code))
        return at

    def run(self, code: str, **changes: int) -> Event | None:
        """Up to the first HLT; the handler it stands in, or None."""
        start = Start(
            bytes.fromhex(code),
            0,
            0x8100,
            **{
                name: changes.pop(name)
                for name in ("rflags", "dr6", "dr7", "debugctl")
                if name in changes
            },
        )
        surface = self.surface
        at = surface.place(start.code) + self.mode.code_offset
        self.at = at
        sregs = surface.system_registers()
        sregs.gdt.limit = GDT_SIZE - 1
        surface.begin(start, surface.registers(start, at) | changes)
        return self.go()

    def go(self) -> Event | None:
        """On to the next HLT."""
        self.surface.go()
        vector = modes.handler_of(self.surface.get("rip"))
        return None if vector is None else self.surface.look(self.at)

    def get(self, name: str) -> int:
        return self.surface.get(name)

    def word(self, at: int, size: int = 4) -> int:
        return int.from_bytes(self.memory.read(at, size), "little")


CALL_GATES = {16: SystemType.CALL_GATE16, 32: SystemType.CALL_GATE, 64: SystemType.CALL_GATE}
