"""A page that no slot holds, and a VMM that answers for it as memory would."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.kvm.guest import PAGE_DIRECTORY, Guest
from trapline.arch.paging import PTE_P, PTE_PS, PTE_U, PTE_W
from trapline.kvm import exits

DEVICE = 0x400000  # linear, where the guest sees the device
DEVICE_PHYSICAL = 0x800000
ROM = 0x600000
ROM_PHYSICAL = 0xA00000
_PAGE = PTE_P | PTE_W | PTE_U | PTE_PS


def map_device(guest: Guest) -> None:
    """Linear 4 MiB to what is no memory, linear 6 MiB to 10 MiB."""
    guest.memory.write_quads(PAGE_DIRECTORY + 16, DEVICE_PHYSICAL | _PAGE, ROM_PHYSICAL | _PAGE)


@dataclass
class Vmm:
    """Runs a guest, answers device accesses from `content`, and remembers them."""

    guest: Guest
    content: bytearray = field(default_factory=lambda: bytearray(0x3000))
    seen: list[tuple[str, int, int]] = field(default_factory=list)
    ports: list[tuple[str, int, int, int, bytes]] = field(default_factory=list)
    input: bytes = b""

    def run(self) -> exits.Exit:
        """Up to an exit that is no device access."""
        while True:
            exit = self.guest.vcpu.run()
            match exit:
                case exits.Mmio():
                    self._serve_memory(exit)
                case exits.Io():
                    self._serve_port(exit)
                case _:
                    return exit

    def _serve_memory(self, exit: exits.Mmio) -> None:
        offset = exit.guest_physical - DEVICE_PHYSICAL
        kind = "write" if exit.is_write else "read"
        self.seen.append((kind, exit.guest_physical, exit.size))
        assert 1 <= exit.size <= 8 and len(exit.data) == exit.size
        if exit.is_write:
            self.content[offset : offset + exit.size] = exit.data
        else:
            exit.data[:] = self.content[offset : offset + exit.size]

    def _serve_port(self, exit: exits.Io) -> None:
        if exit.is_input:
            size = len(exit.data)
            exit.data[:], self.input = self.input[:size], self.input[size:]
        direction = "in" if exit.is_input else "out"
        self.ports.append((direction, exit.port, exit.size, exit.count, bytes(exit.data)))
