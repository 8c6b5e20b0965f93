"""The board: a VM with its vCPUs, their memory, and every device at its place.

What sits where is decided here; what an exit means, in `processor_thread`.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Sequence

from trapline.kvm import Kvm, abi
from trapline.machine import devices, layout, starting
from trapline.machine.acpi import write_tables
from trapline.machine.boot import Mode, Module, Part, load
from trapline.machine.bus import MemoryBus, PortBus
from trapline.machine.ending import Ending, How, ended
from trapline.machine.memory import Memory

MOST_CPUS = 255
_TIMED = (
    layout.PIT, layout.PIT + 3, layout.SPEAKER, layout.CMOS, layout.CMOS + 1,
    layout.PIC_MASTER, layout.PIC_MASTER + 1, layout.PIC_SLAVE, layout.PIC_SLAVE + 1,
)  # fmt: skip
TIMED_PORTS = frozenset(port - i for port in _TIMED for i in range(4))
"""Where an access, four bytes wide at most, may show or change when the next interrupt comes."""


class Board:
    """`send` is given what the guest prints; `bus_lock_exits` has each bus lock leave the guest."""

    def __init__(
        self,
        kvm: Kvm,
        memory_size: int,
        send: Callable[[bytes], None],
        *,
        cpus: int = 1,
        bus_lock_exits: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not 1 <= cpus <= MOST_CPUS:
            raise ValueError(f"a machine has 1 to {MOST_CPUS} processors")
        self._kvm = kvm
        self.memory = Memory(memory_size)
        self.lock = threading.Lock()
        """Who touches a device holds it."""
        self.ending: Ending | None = None
        """Set by a device that ends the run."""
        self.parts: Sequence[Part] = ()
        """What of the image's file was loaded, and where to."""
        self.clock = clock
        self.ports, self.device_memory = PortBus(), MemoryBus()
        self.vm = kvm.create_vm()
        self._attach_devices(send, cpus)
        self.memory.attach(self.vm)
        self.vm.enable_cap(abi.Capability.SPLIT_IRQCHIP, devices.IoApic.LINES)
        if bus_lock_exits:
            self.vm.enable_cap(abi.Capability.X86_BUS_LOCK_EXIT, abi.BUS_LOCK_DETECTION_EXIT)
        self.vcpus = [self.vm.create_vcpu(number) for number in range(cpus)]
        self.vcpu = self.vcpus[0]

    def load(
        self,
        image: bytes,
        command_line: str = "",
        address: int | None = None,
        modules: Sequence[Module] = (),
    ) -> None:
        """Put an image into memory and the first vCPU before its first instruction; the others
        wait to be started."""
        starting.write_descriptors(self.memory)
        write_tables(self.memory, len(self.vcpus))
        where = load(self.memory, image, command_line, address, modules)
        self.parts = where.parts
        if where.mode is not Mode.REAL:
            # The vectors that firmware gives the lines are exceptions in protected mode: who wants
            # interrupts there sets the controllers up, which opens all lines.
            self.pics.master.mask = layout.ONLY_CASCADE
        starting.set_cpuid(self._kvm, self.vcpus)
        starting.connect_lines(self.vcpu)
        starting.start(self.vcpu, where)

    def close(self) -> None:
        """The vCPUs will not run again; the observer gets the last counts."""
        self.vm.close()

    # -- interrupts and time --------------------------------------------------------------------

    def _line(self, number: int) -> Callable[[bool], None]:
        return lambda is_high: self._set_line(number, is_high)

    def _set_line(self, number: int, is_high: bool) -> None:
        """A line leads to both kinds of controller."""
        self.pics.set_line(number, is_high)
        self.io_apic.set_line(_pin(number), is_high)

    def tick(self) -> None:
        """Have the devices notice what time it is."""
        self.pit.tick()
        self.rtc.tick()

    def deadline(self) -> int | None:
        """The time of the next interrupt that a device will ask for and that is not masked."""
        return self._deadline(lambda line: not self._is_masked(line))

    def nmi_deadline(self) -> int | None:
        """The same of what comes as NMI or INIT, and so where interrupts are off too."""
        return self._deadline(lambda line: self.io_apic.is_unstoppable(_pin(line)))

    def _deadline(self, counts: Callable[[int], bool]) -> int | None:
        sources = ((layout.TIMER_LINE, self.pit), (layout.CLOCK_LINE, self.rtc))
        times = [
            time
            for line, source in sources
            if counts(line) and (time := source.deadline()) is not None
        ]
        return min(times, default=None)

    def _is_masked(self, line: int) -> bool:
        return self.pics.is_masked(line) and self.io_apic.is_masked(_pin(line))

    # -- devices --------------------------------------------------------------------------------

    def _attach_devices(self, send: Callable[[bytes], None], cpus: int) -> None:
        attach = self.ports.attach
        self.pics = devices.PicPair()
        attach(self.pics.master, layout.PIC_MASTER, 2)
        attach(self.pics.slave, layout.PIC_SLAVE, 2)
        attach(self.pics.master_elcr, layout.ELCR, 1)
        attach(self.pics.slave_elcr, layout.ELCR + 1, 1)
        self.io_apic = devices.IoApic(self.vm.signal_msi, self.pics.acknowledge)
        self.device_memory.attach(self.io_apic, layout.IO_APIC, devices.IoApic.SIZE)
        self.pit = devices.Pit(self._line(layout.TIMER_LINE), self.clock)
        attach(self.pit, layout.PIT, 4)
        attach(self.pit.speaker, layout.SPEAKER, 1)
        below, above = self.memory.below, self.memory.above
        self.rtc = devices.Rtc(below, above, self._line(layout.CLOCK_LINE), self.clock, cpus)
        attach(self.rtc, layout.CMOS, 2)
        attach(devices.Serial(send, self._line(layout.SERIAL_LINE)), layout.SERIAL, 8)
        attach(devices.DebugPort(send), layout.DEBUG_PORT, 1)
        files = {"etc/e820": b"".join(struct.pack("<QQI", *one) for one in self.memory.ram())}
        config = devices.FirmwareConfig(self.memory.size, cpus, files, self.memory)
        attach(config, layout.FIRMWARE_CONFIG, 2, 2)
        attach(config.dma, layout.FIRMWARE_CONFIG_DMA, 8, 4)
        self._attach_test_devices()
        self._attach_resets()

    def _attach_test_devices(self) -> None:
        attach = self.ports.attach
        for port, size in layout.DEBUG_EXITS:
            attach(devices.DebugExit(self._exit), port, size, 4)
        attach(devices.EchoPorts(), layout.ECHO, 4, 4)
        echo = devices.EchoPorts()
        for offset in layout.BYTE_ECHO_OFFSETS:
            attach(echo.at(offset), layout.BYTE_ECHO + offset, 1)
        self.device_memory.attach(devices.Window(), layout.TEST_WINDOW, devices.Window.SIZE, 8)
        attach(devices.FlushPort(), layout.FLUSH, 4, 4)
        attach(devices.InterruptPorts(self._set_line), layout.TEST_LINES, devices.IoApic.LINES)

    def _attach_resets(self) -> None:
        attach = self.ports.attach
        keyboard = devices.KeyboardController(self._reset)
        attach(keyboard.at(0), layout.KEYBOARD_DATA, 1)
        attach(keyboard.at(1), layout.KEYBOARD_COMMAND, 1)
        attach(devices.SystemControl(self._reset), layout.SYSTEM_CONTROL, 1)
        attach(devices.PciPorts(self._reset), layout.PCI, 8, 4)
        attach(devices.AcpiEvents(), layout.ACPI_EVENTS, 4, 4)
        attach(devices.AcpiTimer(self.clock), layout.ACPI_TIMER, 4, 4)
        for port in layout.ACPI_CONTROLS:
            attach(devices.AcpiControl(self._power_off), port, 2, 2)

    def _exit(self, status: int) -> None:
        self.ending = Ending(How.DEBUG_EXIT, f"ended with status {status}", status)

    def _reset(self) -> None:
        self.ending = ended(How.RESET, "asked for a reset")

    def _power_off(self) -> None:
        self.ending = ended(How.POWER_OFF, "switched the machine off")


def _pin(line: int) -> int:
    """Which of the I/O APIC's inputs a line of the 8259 leads to."""
    return layout.TIMER_PIN if line == layout.TIMER_LINE else line
