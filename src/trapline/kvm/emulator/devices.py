"""What an emulated instruction finds behind guest-physical addresses and ports.

Memory slots are memory.  Anything else is a device: inside the hypervisor, or the VMM's, which
answers by an exit; the instruction is then done again from its beginning, and finds the answers
in the record kept here.
"""

from __future__ import annotations

import ctypes
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from trapline.kvm import abi
from trapline.kvm.exits import Io, Mmio

if TYPE_CHECKING:
    from trapline.kvm.mmu import Slots
    from trapline.kvm.vcpu import SoftwareVcpu


class Awaited(Exception):  # a way out, not an error
    """The instruction needs what only the VMM can tell: this exit, filled in."""

    def __init__(self, exit: Io | Mmio) -> None:
        self.exit = exit


class _Kind(Enum):
    READ = "read"
    WRITE = "write"
    OUTPUT = "output"


class _Access(NamedTuple):
    kind: _Kind
    where: int
    size: int
    word: int


class Devices:
    """The bus of one vCPU's emulator.

    `outputs` are exits for what the instruction has written and nobody has been told yet.
    """

    def __init__(self, vcpu: SoftwareVcpu, slots: Slots) -> None:
        self._vcpu = vcpu
        self._slots = slots
        self._record: list[_Access] = []
        self._position = 0
        self._ahead: list[int] = []  # input that the VMM has given, and how much of it is used
        self._used = 0
        self.outputs: list[Io | Mmio] = []
        self.inputs_wanted = 1
        """How many elements the next exit for input should ask for at once."""

    # -- the record -----------------------------------------------------------------------------

    def forget(self) -> None:
        """An instruction, or an iteration of it, is complete: what it did not use is kept for the
        next iteration."""
        del self._record[: self._position], self._ahead[: self._used]
        self.restart()

    def clear(self) -> None:
        """Another instruction begins."""
        self._record.clear()
        self._ahead.clear()
        self.outputs.clear()
        self.restart()

    def restart(self) -> None:
        """The same instruction begins again."""
        self._position = self._used = 0

    @property
    def has_answers(self) -> bool:
        """Whether input has been read ahead that no iteration has used."""
        return self._used < len(self._ahead)

    def answer(self, exit: Io | Mmio) -> None:
        """The VMM has filled in an exit."""
        data, size = exit.data, exit.size
        if isinstance(exit, Mmio):
            word = int.from_bytes(data[:size], "little")
            self._note(_Kind.READ, exit.guest_physical, size, word)
            return
        for i in range(0, exit.count * size, size):
            self._ahead.append(int.from_bytes(data[i : i + size], "little"))

    def _note(self, kind: _Kind, where: int, size: int, word: int) -> None:
        self._record.append(_Access(kind, where, size, word))

    def _known(self, kind: _Kind, where: int, size: int) -> int | None:
        """The word, if this access has been made when the instruction was tried before."""
        position, record = self._position, self._record
        if position == len(record):
            return None
        if record[position][:3] != (kind, where, size):
            del record[position:]  # memory has changed meanwhile: it takes another way
            return None
        self._position += 1
        return record[position].word

    @property
    def generation(self) -> int:
        return self._slots.generation

    # -- physical memory ------------------------------------------------------------------------

    def host(self, physical: int) -> int | None:
        return self._slots.host(physical)

    def is_read_only(self, physical: int) -> bool:
        slot = self._slots.find(physical)
        return slot is not None and slot.is_read_only

    def read_device(self, physical: int, size: int) -> int:
        host = self._slots.host(physical)
        if host is not None:  # a read-only slot, in an access that writes too
            return int.from_bytes(ctypes.string_at(host, size), "little")
        known = self._known(_Kind.READ, physical, size)
        if known is not None:
            return known
        data = self._vcpu.mmio_bus.read(self._vcpu, physical, size)
        if data is None:
            raise Awaited(Mmio(physical, size, False, bytearray(size)))
        word = int.from_bytes(data, "little")
        self._note(_Kind.READ, physical, size, word)
        self._position += 1
        return word

    def write_device(self, physical: int, size: int, word: int) -> None:
        if self._known(_Kind.WRITE, physical, size) is not None:
            return
        data = word.to_bytes(size, "little")
        if not self._vcpu.mmio_bus.write(self._vcpu, physical, data):
            self.outputs.append(Mmio(physical, size, True, bytearray(data)))
        self._note(_Kind.WRITE, physical, size, word)
        self._position += 1

    # -- ports ----------------------------------------------------------------------------------

    def read_port(self, port: int, size: int) -> int:
        if not self.has_answers:
            count = self.inputs_wanted
            raise Awaited(Io(abi.EXIT_IO_IN, size, port, count, bytearray(size * count)))
        self._used += 1
        return self._ahead[self._used - 1]

    def write_port(self, port: int, size: int, word: int) -> None:
        if self._known(_Kind.OUTPUT, port, size) is None:
            data = bytearray(word.to_bytes(size, "little"))
            self.outputs.append(Io(abi.EXIT_IO_OUT, size, port, 1, data))
            self._note(_Kind.OUTPUT, port, size, word)
            self._position += 1
