"""The reference engine."""

from trapline.processor.interp import sse_float, vector, vector_across
from trapline.processor.interp.engine import execute, recording

__all__ = ["execute", "recording", "sse_float", "vector", "vector_across"]
