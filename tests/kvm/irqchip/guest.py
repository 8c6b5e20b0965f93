"""Guests of several vCPUs with local APICs: their code by the instruction, and a run of all.

Memory, tables and selectors are those of `tests.kvm.guest`; what the vCPUs leave for the test lies
from `RESULTS` on.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.kvm import guest as base
from trapline.arch import apic, cpuid, msr, registers
from trapline.kvm import Kvm, Vcpu, abi, exits

Wait = Callable[[int, int], bytes]
Write = Callable[[int, int], bytes]
Read = Callable[[int, int], bytes]
Story = Callable[[Kvm], list[int]]
RESULTS = 0x60000
TRAMPOLINE = 0x9000  # where a start-up IPI with vector 9 leads to
AP_CODE = 0x80000
STACKS = 0x100000
_GDTR = 0x4FF0
X2APIC_ON = msr.APIC_BASE_RESET | msr.APIC_BASE_ENABLE | msr.APIC_BASE_X2APIC

END = bytes.fromhex("e6f4")  # out 0f4h, al
STI, CLI, HLT, IRETQ, NOP = b"\xfb", b"\xfa", b"\xf4", b"\x48\xcf", b"\x90"
FOREVER = b"\xeb\xfe"


def x2apic(offset: int) -> int:
    """The MSR of a register of the page."""
    return msr.X2APIC_FIRST + offset // 16


def at(opcode: str, *words: int) -> bytes:
    """An instruction and its address or immediate operands, of 32 bits each."""
    return bytes.fromhex(opcode) + struct.pack(f"<{len(words)}I", *words)


def wrmsr(index: int, word: int) -> bytes:
    """mov ecx, index; mov eax, low; mov edx, high; wrmsr"""
    return at("b9", index) + at("b8", word & 0xFFFFFFFF) + at("ba", word >> 32) + b"\x0f\x30"


def store_msr(index: int, address: int) -> bytes:
    """mov ecx, index; rdmsr; mov [address], eax; mov [address + 4], edx"""
    return at("b9", index) + b"\x0f\x32" + at("89 04 25", address) + at("89 14 25", address + 4)


def store(address: int, word: int) -> bytes:
    """mov dword [address], word"""
    return at("c7 04 25", address, word)


def copy(source: int, target: int) -> bytes:
    """mov eax, [source]; mov [target], eax"""
    return at("8b 04 25", source) + at("89 04 25", target)


def increment(address: int, lock: bool = True) -> bytes:
    """lock inc dword [address]"""
    return at("f0 ff 04 25" if lock else "ff 04 25", address)


def wait_for(address: int, count: int) -> bytes:
    """pause; cmp dword [address], count; jb back"""
    return at("f3 90 81 3c 25", address, count) + b"\x72\xf1"


def halt_until(address: int, count: int) -> bytes:
    """cli; cmp dword [address], count; jae out; sti; hlt; jmp back"""
    return at("fa 81 3c 25", address, count) + b"\x73\x04\xfb\xf4\xeb\xee"


def software_enable() -> bytes:
    return wrmsr(x2apic(apic.SVR), apic.SVR_ENABLED | 0xFF)


def start() -> bytes:
    """x2APIC mode, the APIC switched on."""
    return store_apic_base() + software_enable()


def store_apic_base() -> bytes:
    """Into x2APIC mode, the BSP flag as it is: rdmsr; or eax, 0c00h; wrmsr"""
    modes = msr.APIC_BASE_ENABLE | msr.APIC_BASE_X2APIC
    return at("b9", msr.IA32_APIC_BASE) + at("0f 32 0d", modes) + b"\x0f\x30"


def command(mode: int, vector: int = 0, shorthand: int = 0, destination: int = 0) -> bytes:
    """An interrupt command in x2APIC mode."""
    low = apic.ICR_ASSERT | shorthand << apic.ICR_SHORTHAND_SHIFT | mode << 8 | vector
    return wrmsr(x2apic(apic.ICR), destination << 32 | low)


END_OF_INTERRUPT = b"\x50\x51\x52" + wrmsr(x2apic(apic.EOI), 0) + b"\x5a\x59\x58"


class Machine(base.Guest):
    """A VM with local APICs; every vCPU in 64-bit mode at a code of its own, interrupts off."""

    def __init__(self, kvm: Kvm, *codes: bytes, waiting: int = 0) -> None:
        self.kvm = kvm
        self.vm = kvm.create_vm()
        self.vm.enable_cap(abi.Capability.SPLIT_IRQCHIP, 24)
        self.memory = base.Memory()
        self.vm.set_user_memory_region(0, 0, 0, base.SIZE, self.memory.address)
        self.vcpus: list[Vcpu] = []
        self.ends: dict[int, exits.Exit] = {}
        self._errors: list[BaseException] = []
        for number in range(len(codes) + waiting):
            vcpu = self.vm.create_vcpu(number)
            vcpu.set_cpuid2(
                entry.with_feature(cpuid.TSC_DEADLINE) if entry.function == 1 else entry
                for entry in kvm.get_supported_cpuid()
            )
            self.vcpus.append(vcpu)
        self.vcpu = self.vcpus[0]
        self._write_tables()
        for number, code in enumerate(codes):
            self._place(number, code)

    def _write_tables(self) -> None:
        memory, table = self.memory, 7
        memory.write_quads(base.PML4, base.PDPT | table)
        memory.write_quads(base.PDPT, base.PAGE_DIRECTORY | table)
        memory.write_quads(base.PAGE_DIRECTORY, *(table | 0x80 | i << 21 for i in range(512)))
        # The fourth GiB, where the APICs' page is.
        memory.write_quads(base.PDPT + 24, 0x7000 | table)
        memory.write_quads(0x7000, *(table | 0x80 | 3 << 30 | i << 21 for i in range(512)))
        base.write_descriptors(memory)
        memory.write(_GDTR, struct.pack("<HI", 0x4F, base.GDT))

    def _place(self, number: int, code: bytes) -> None:
        vcpu, at = self.vcpus[number], base.KERNEL_CODE + number * 0x1000
        self.memory.write(at, code)
        vcpu.set_mp_state(abi.MpState.RUNNABLE)
        sregs = base.long_mode_sregs(vcpu.get_sregs(), 0)
        vcpu.set_sregs(sregs)
        regs = vcpu.regs
        regs.rip, regs.rflags, regs.rsp = at, 2, STACKS + (number + 1) * 0x1000

    def write_trampoline(self, code: bytes) -> None:
        """What a start-up IPI leads to: from real mode to 64-bit mode, and on to `code`, with a
        stack by the number that it draws."""

        def load(number: int, word: int) -> bytes:  # mov eax, word; mov cr, eax
            return b"\x66\xb8%s\x0f\x22%c" % (struct.pack("<I", word), 0xC0 | number << 3)

        long_mode = registers.EFER_LME | registers.EFER_NXE
        self.memory.write(
            TRAMPOLINE,
            load(4, registers.CR4_PAE | registers.CR4_OSFXSR)
            + load(3, base.PML4)
            + b"\x66\xb9%s\x66\xb8%s\x66\x31\xd2\x0f\x30"
            % (struct.pack("<I", msr.IA32_EFER), struct.pack("<I", long_mode))
            + b"\x66\x0f\x01\x16%s" % struct.pack("<H", _GDTR)
            + load(0, registers.CR0_PE | registers.CR0_PG | registers.CR0_ET | registers.CR0_NE)
            + b"\x66\xea%s" % struct.pack("<IH", AP_CODE, base.CS0),
        )
        # mov eax, 1; lock xadd [RESULTS], eax; inc eax; shl eax, 12; lea rsp, [rax + STACKS]
        stack = at("b8", 1) + at("f0 0f c1 04 25", RESULTS)
        stack += at("ff c0 c1 e0 0c 48 8d a0", STACKS + 0x1000)
        idt = at("0f 01 1c 25", _GDTR - 16)  # lidt
        self.memory.write(_GDTR - 16, struct.pack("<HQ", 0xFFF, base.IDT))
        self.memory.write(AP_CODE, idt + stack + code)

    def handle(self, vector: int, code: bytes) -> None:
        """What an interrupt does; the end of interrupt and IRETQ follow."""
        base.handle(self, vector, code + END_OF_INTERRUPT + IRETQ)

    def word(self, offset: int = 0) -> int:
        return int.from_bytes(self.memory.read(RESULTS + offset, 4), "little")

    def quad(self, offset: int = 0) -> int:
        return self.memory.quad(RESULTS + offset)

    # -- running --------------------------------------------------------------------------------

    def _live(self, number: int) -> None:
        try:
            self.ends[number] = self.vcpus[number].run()
        except BaseException as error:
            self._errors.append(error)

    @contextmanager
    def running(self, *numbers: int) -> Iterator[None]:
        """Each in a thread of its own; at the end those that still run are stopped."""
        threads = [threading.Thread(target=self._live, args=(n,), daemon=True) for n in numbers]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for number in numbers:
                self.vcpus[number].kick()
            for thread in threads:
                thread.join(60)
            if self._errors:
                raise self._errors[0]

    def run(self, *others: int) -> exits.Exit:
        """The first vCPU to its next exit, the others beside it."""
        with self.running(*others):
            return self.run_first()

    def run_first(self, timeout: float = 300) -> exits.Exit:
        """The first vCPU on this thread; kicked if it takes too long."""
        watchdog = threading.Timer(timeout, self.vcpus[0].kick)
        watchdog.start()
        try:
            return self.vcpus[0].run()
        finally:
            watchdog.cancel()


def is_end(exit: exits.Exit) -> bool:
    return isinstance(exit, exits.Io) and exit.port == 0xF4
