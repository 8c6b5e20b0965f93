"""What the instruction language cannot say: functions of the core, by name."""

from trapline.processor.microcode import (
    control,
    far,
    flow,
    identify,
    interrupt,
    port,
    segments,
    system_call,
    tables,
    virtualization,
)
from trapline.processor.microcode.registry import MICROCODE, microcode

__all__ = [
    "MICROCODE",
    "control",
    "far",
    "flow",
    "identify",
    "interrupt",
    "microcode",
    "port",
    "segments",
    "system_call",
    "tables",
    "virtualization",
]
