"""The devices, one file each; none knows where it sits, none knows another: names only."""

from trapline.machine.devices.debug_exit import DebugExit
from trapline.machine.devices.debug_port import DebugPort
from trapline.machine.devices.fw_cfg import FirmwareConfig
from trapline.machine.devices.ioapic import IoApic
from trapline.machine.devices.keyboard_controller import KeyboardController
from trapline.machine.devices.pci import PciPorts
from trapline.machine.devices.pic import PicPair
from trapline.machine.devices.pit import Pit
from trapline.machine.devices.power import AcpiControl, AcpiEvents, AcpiTimer, SystemControl
from trapline.machine.devices.rtc import Rtc
from trapline.machine.devices.serial import Serial
from trapline.machine.devices.test_device import EchoPorts, FlushPort, InterruptPorts, Window

__all__ = [
    "AcpiControl",
    "AcpiEvents",
    "AcpiTimer",
    "DebugExit",
    "DebugPort",
    "EchoPorts",
    "FirmwareConfig",
    "FlushPort",
    "InterruptPorts",
    "IoApic",
    "KeyboardController",
    "PciPorts",
    "PicPair",
    "Pit",
    "Rtc",
    "Serial",
    "SystemControl",
    "Window",
]
