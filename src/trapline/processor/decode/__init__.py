"""Bytes to instructions; iced-x86 stays inside."""

from trapline.processor.decode.decoder import decode, decode_run, disassemble
from trapline.processor.decode.instruction import Bound, Decoded

__all__ = ["Bound", "Decoded", "decode", "decode_run", "disassemble"]
