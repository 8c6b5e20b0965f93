"""The fast engine; llvmlite stays inside."""

from trapline.processor.jit import sse_float, vector, vector_across
from trapline.processor.jit.blocks import CodeCache
from trapline.processor.jit.engine import Engine

__all__ = ["CodeCache", "Engine", "sse_float", "vector", "vector_across"]
