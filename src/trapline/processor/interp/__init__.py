"""The reference engine."""

from trapline.processor.interp import sse_float, vector, vector_across, x87
from trapline.processor.interp.engine import execute

__all__ = ["execute", "sse_float", "vector", "vector_across", "x87"]
