"""Functions of the core that instructions name; importing this registers them all."""

from trapline.processor.microcode.registry import MICROCODE, microcode

__all__ = ["MICROCODE", "microcode"]
