"""The reference engine."""

from trapline.processor.interp.engine import execute, recording

__all__ = ["execute", "recording"]
