"""The virtual machine under a program: memory slots, page tables, the monitor, vCPUs.

Knows guest-physical memory and processors; areas, system calls and signals are not its business.
"""

from __future__ import annotations

import mmap

from trapline.arch import msr
from trapline.arch.paging import PTE_A, PTE_D, PTE_P, PTE_W
from trapline.arch.registers import (
    CR0_AM,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
)
from trapline.kvm import Dtable, Kvm, Segment, Sregs, Vcpu, VcpuEvents, abi
from trapline.process import layout, monitor
from trapline.process.cpuid import for_program
from trapline.process.elf import ExecError
from trapline.process.extended_state import of_programs
from trapline.process.native import HostCalls, view
from trapline.process.page_tables import PageTables

_MMAP = 9
_MUNMAP = 11
_PRIVATE_ANONYMOUS_NORESERVE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
_SUPERVISOR = PTE_P | PTE_W | PTE_A | PTE_D
# RFLAGS that SYSCALL clears, as Linux sets it up: IF, TF, DF and all that matters to ring 0.
_SYSCALL_MASK = 0x257FD5
_CR0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG
_CR4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE
_EFER = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE


class Processor:
    """A vCPU and the monitor's page that belongs to it."""

    def __init__(self, vcpu: Vcpu, page: int, memory: memoryview) -> None:
        self.vcpu = vcpu
        self.page = page
        self.memory = memory
        self.frame_linear = page + monitor.FRAME_OFFSET

    def read_frame(self) -> tuple[int, ...]:
        """{cr2 or dr6, error code, rip, cs, rflags, rsp, ss} of the exception just taken."""
        return monitor.FRAME.unpack_from(self.memory, monitor.FRAME_OFFSET)

    def read_flush_frame(self) -> tuple[int, ...]:
        """{rax, rip, cs, rflags, rsp, ss} of the flush by NMI that is under way."""
        return monitor.FLUSH_FRAME.unpack_from(self.memory, monitor.FLUSH_FRAME_OFFSET)

    def write_frame(self, rip: int, rflags: int, rsp: int) -> None:
        monitor.FRAME.pack_into(
            self.memory, monitor.FRAME_OFFSET, 0, 0, rip, layout.USER_CS, rflags, rsp,
            layout.USER_SS,
        )  # fmt: skip


class GuestMachine:
    """One VM; `low_base` is where the guest's first 4 GiB live on the host."""

    def __init__(self, kvm: Kvm, *, bus_lock_detection: bool = True) -> None:
        self._kvm = kvm
        self.extended_state = of_programs(kvm)
        self.cpuid = for_program(kvm.get_supported_cpuid(), self.extended_state, bus_lock_detection)
        self.monitor = monitor.assemble()
        calls = HostCalls()
        self.low_base = _reserve(calls, layout.LOW_SIZE, 0, layout.WINDOW)
        arena = _reserve(calls, layout.ARENA_SIZE, mmap.PROT_READ | mmap.PROT_WRITE, layout.PAGE)
        self._arena_host = arena
        self._arena = view(arena, layout.ARENA_SIZE)
        self.tables = self._make_tables()
        self._windows: dict[int, int] = {}
        self._idle: list[Processor] = []
        self._all: list[Vcpu] = []
        self._open()

    def _open(self) -> None:
        """Make the VM, with the slots there are so far."""
        self.vm = self._kvm.create_vm()
        self._vcpus = 0
        self.vm.set_user_memory_region(0, 0, layout.ARENA, layout.ARENA_SIZE, self._arena_host)
        for index, guest_physical in self._windows.items():
            self._set_window(index, guest_physical)

    def keep(self, processor: Processor) -> bool:
        """In a child of a fork: go on with this processor alone, in the VM as it was copied.

        False where the VM is the parent's, for KVM ties one to an address space; then there is a
        new one over the child's copy of the memory.
        """
        self._idle.clear()
        if self.vm.keep(processor.vcpu):
            self._all = [processor.vcpu]
            return True
        self.vm.abandon()
        self._all.clear()
        self._open()
        return False

    def close(self) -> None:
        """The process has ended: processors report what they have counted."""
        for vcpu in self._all:
            vcpu.close()
        self.vm.close()

    # -- memory ---------------------------------------------------------------------------------

    def host(self, linear: int) -> int:
        """Where this address of the program is in the VMM's own address space."""
        return linear if linear >= layout.LOW_SIZE else self.low_base + linear

    def guest_physical(self, linear: int) -> int:
        """The guest-physical address of a user address; makes the window on first use."""
        index = linear >> 30
        window = self._windows.get(index)
        if window is None:
            window = layout.FIRST_WINDOW + len(self._windows) * layout.WINDOW
            self._windows[index] = window
            self._set_window(index, window)
        return window + (linear & layout.WINDOW - 1)

    def forget_code(self, start: int, end: int) -> None:
        """What was code in [start, end) may be other code now, or none."""
        self.vm.forget_code(self.host(start), end - start)

    def forget_tables(self) -> None:
        """Drop the program's half of the page tables.  Only one thread may be left.

        A KVM that shadows them does not see what the VMM writes there, and the tables made from
        now on lie where others lay: a slot that comes back makes it look at everything.
        """
        self.tables.forget()
        for index, window in list(self._windows.items())[:1]:
            self.vm.set_user_memory_region(self._slot(window), 0, window, 0, 0)
            self._set_window(index, window)

    def _slot(self, window: int) -> int:
        return (window - layout.FIRST_WINDOW) // layout.WINDOW + 1

    def _set_window(self, index: int, window: int) -> None:
        linear = index << 30
        size = min(layout.WINDOW, layout.USER_END - linear)
        self.vm.set_user_memory_region(self._slot(window), 0, window, size, self.host(linear))

    def _make_tables(self) -> PageTables:
        shared = monitor.shared_pages(self.monitor)
        self._arena[: len(shared)] = shared
        used = (layout.MONITOR_END - layout.MONITOR) // layout.PAGE
        page_tables = PageTables(self._arena.cast("Q"), layout.ARENA, used)
        page_tables.reserve(layout.MONITOR, layout.MONITOR_END)
        for linear in (layout.MONITOR_CODE, layout.MONITOR_TABLES):
            page_tables.map_page(linear, self._monitor_physical(linear), _SUPERVISOR)
        return page_tables

    def _monitor_physical(self, linear: int) -> int:
        return layout.ARENA + linear - layout.MONITOR

    # -- processors -----------------------------------------------------------------------------

    def take_processor(self) -> Processor:
        """A vCPU in 64-bit mode, about to execute the monitor's start at CPL 0."""
        if self._idle:
            processor = self._idle.pop()
            self._reset(processor)
            return processor
        if self._vcpus == layout.VCPU_LIMIT:
            raise OSError(11, "no more virtual processors")
        vcpu = self.vm.create_vcpu(self._vcpus)
        self._all.append(vcpu)
        offset = 2 * layout.PAGE + self._vcpus * layout.PAGE
        self._vcpus += 1
        memory = self._arena[offset : offset + layout.PAGE]
        linear = layout.MONITOR + offset
        self.tables.map_page(linear, self._monitor_physical(linear), _SUPERVISOR)
        memory[: monitor.TSS_SIZE] = monitor.tss(linear)
        vcpu.set_cpuid2(self.cpuid)
        vcpu.set_xcrs({0: self.extended_state.xcr0})
        processor = Processor(vcpu, linear, memory)
        self._reset(processor)
        return processor

    def give_back(self, processor: Processor) -> None:
        """A thread has ended; its vCPU serves the next one (KVM cannot take vCPUs away)."""
        self._idle.append(processor)

    def _reset(self, processor: Processor) -> None:
        vcpu = processor.vcpu
        old = vcpu.get_sregs()
        data = Segment(0, 0xFFFFFFFF, layout.KERNEL_SS, 3, 1, 0, 1, 1, 0, 1)
        nothing = Segment(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
        code = Segment(0, 0xFFFFFFFF, layout.KERNEL_CS, 11, 1, 0, 0, 1, 1, 1)
        task = Segment(
            processor.page, monitor.TSS_SIZE - 1, layout.TSS_SELECTOR, 11, 1, 0, 0, 0, 0, 0
        )
        vcpu.set_sregs(
            Sregs(
                cs=code, ds=nothing, es=nothing, fs=nothing, gs=nothing, ss=data,
                tr=task, ldt=nothing,
                gdt=Dtable(monitor.GDT_LINEAR, monitor.GDT_LIMIT),
                idt=Dtable(monitor.IDT_LINEAR, monitor.IDT_LIMIT),
                cr0=_CR0, cr3=self.tables.cr3, cr4=_CR4, efer=_EFER, apic_base=old.apic_base,
            )
        )  # fmt: skip
        msrs = {
            msr.IA32_STAR: monitor.STAR,
            msr.IA32_LSTAR: self.monitor.system_call,
            msr.IA32_FMASK: _SYSCALL_MASK,
        }
        vcpu.set_vcpu_events(VcpuEvents(flags=abi.VCPUEVENT_VALID_NMI_PENDING))
        if vcpu.set_msrs(msrs) != len(msrs):
            raise OSError(22, "the hypervisor refused an MSR that system calls need")


def _reserve(calls: HostCalls, size: int, prot: int, alignment: int) -> int:
    """Address space of the VMM, aligned, that costs nothing until it is used."""
    length = size + alignment
    start = calls(_MMAP, 0, length, prot, _PRIVATE_ANONYMOUS_NORESERVE, (1 << 64) - 1, 0)
    if start < 0:
        raise ExecError(
            -start,
            f"there is no room to reserve {size >> 30} GiB of address space, as programs need here",
            "If that is for a limit (`ulimit -v`), lift it: reserved is not used.",
        )
    aligned = start + alignment - 1 & -alignment
    if aligned > start:
        calls(_MUNMAP, start, aligned - start)
    if aligned + size < start + length:
        calls(_MUNMAP, aligned + size, start + length - aligned - size)
    return aligned


def cpu_registers_start(processor: Processor, start: int, bus_lock_detection: bool) -> None:
    """Set the vCPU to run the monitor's start, which ends at PORT_READY."""
    regs = processor.vcpu.regs
    regs.rip = start
    regs.rsp = processor.frame_linear
    regs.rdi = int(bus_lock_detection)
    regs.rflags = 2
