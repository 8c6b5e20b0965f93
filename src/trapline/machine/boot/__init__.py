"""How a guest image gets into memory and the vCPU to its first instruction: names only."""

from trapline.machine.boot.flat import service_call
from trapline.machine.boot.image import BadImage, Mode, Module, Part, Start
from trapline.machine.boot.load import load

__all__ = ["BadImage", "Mode", "Module", "Part", "Start", "load", "service_call"]
