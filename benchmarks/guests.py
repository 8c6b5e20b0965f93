"""The guests that the hypervisor's benchmarks run, and the same loops on a bare processor."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.kvm import guest as small
from tests.processor.long_mode import LongMode
from tests.processor.protected import Protected

from benchmarks.measure import PROGRAMS, compiler
from trapline.arch import msr
from trapline.arch.msr import DEBUGCTL_BLD
from trapline.arch.registers import CR4_OSFXSR, RFLAGS_IOPL
from trapline.kvm import Vcpu, exits, open_kvm
from trapline.machine import Board, How, Runner

_COUNTER = 0x51000
_DATA_EACH = 0x20000
_DEBUG = 1  # the vector
_IMAGE = 0x100000
_CODE_32 = 0x8000


def assemble(name: str, origin: int, *flags: str) -> bytes:
    """One of the programs as bytes that belong at an address."""
    with tempfile.TemporaryDirectory() as folder:
        compiled, linked = Path(folder) / "guest.o", Path(folder) / "guest"
        command = [compiler(), "-c", *flags, "-o", compiled, PROGRAMS / name]
        subprocess.run(command, check=True)
        emulation = "elf_i386" if "-m32" in flags else "elf_x86_64"
        where = ("-m", emulation, f"-Ttext={origin:#x}", "--oformat=binary", "--build-id=none")
        subprocess.run(["ld", *where, "-o", linked, compiled], check=True)
        return linked.read_bytes()


class Guest:
    """A long-mode guest whose vCPUs repeat a piece of code `count` times each."""

    def __init__(self, model: str, body: str, count: int, vcpus: int = 1) -> None:
        self._kvm = open_kvm(cpu=model)
        self.count = count
        is_user = body == "SPLIT"
        code = assemble(
            "guest.S", small.USER_CODE if is_user else small.KERNEL_CODE, f"-DBODY={body}"
        )
        self._guest = small.long_mode(self._kvm, code, cpl=3 if is_user else 0)
        self.vcpus = [self._guest.vcpu]
        if is_user:
            self._take_bus_locks(code)
        for number in range(1, vcpus):
            self.vcpus.append(self._add(number))
        for i, vcpu in enumerate(self.vcpus):
            vcpu.regs.r8, vcpu.regs.rdi = count, i * _DATA_EACH

    def _take_bus_locks(self, code: bytes) -> None:
        start = code.index(b"\xe6\xf4")
        handler = start + 2 + (-(start + 2) & 15)
        small.handle(self._guest, _DEBUG, code[handler:])
        regs = self._guest.vcpu.regs
        regs.rflags |= RFLAGS_IOPL
        self._guest.vcpu.set_msrs({msr.IA32_DEBUGCTL: DEBUGCTL_BLD})

    def _add(self, number: int) -> Vcpu:
        first, vcpu = self._guest.vcpu, self._guest.vm.create_vcpu(number)
        vcpu.set_cpuid2(self._kvm.get_supported_cpuid())
        vcpu.set_sregs(small.long_mode_sregs(vcpu.get_sregs(), 0))
        vcpu.regs.rip, vcpu.regs.rflags, vcpu.regs.rsp = first.regs.rip, 2, small.USER_STACK
        return vcpu

    def run(self, number: int = 0) -> None:
        """One vCPU to its end."""
        vcpu = self.vcpus[number]
        exit = vcpu.run()
        assert isinstance(exit, exits.Hlt | exits.Io), exit
        assert vcpu.regs.r8 == 0

    @property
    def handled(self) -> int:
        """How often the handler of #DB has run."""
        return self._guest.memory.quad(_COUNTER)

    def close(self) -> None:
        for vcpu in self.vcpus:
            vcpu.close()
        self._guest.vm.close()


class Bare:
    """The same loops on a processor without a hypervisor."""

    def __init__(self, model: str, count: int, bits: int = 64) -> None:
        if bits == 64:
            machine = LongMode(model, "jit")
            machine.kernel(assemble("guest.S", 0x8000, "-DBODY=COMPUTE"), r8=count)
            self._core = machine.core
        else:
            code = assemble("guest32.S", _CODE_32, "-m32", f"-DCOUNT={count}")
            protected = Protected(model, "jit").ring(0, code)
            protected.state.cr4 |= CR4_OSFXSR
            self._core = protected.core

    def run(self) -> None:
        self._core.run()
        assert self._core.state.activity == 1

    def close(self) -> None:
        self._core.close()


class Image:
    """A 32-bit multiboot guest on the board, from its start to its end."""

    def __init__(self, model: str, *flags: str) -> None:
        self._board = Board(open_kvm(cpu=model), 16 << 20, lambda printed: None)
        self._board.load(assemble("guest32.S", _IMAGE, "-m32", "-DIMAGE", *flags))

    def run(self) -> None:
        ending = Runner(self._board).run()
        assert ending.how is How.DEBUG_EXIT, ending

    def close(self) -> None:
        self._board.close()
