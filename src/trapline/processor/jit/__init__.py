"""The fast engine; llvmlite stays inside."""

from trapline.processor.jit.blocks import CodeCache
from trapline.processor.jit.engine import Engine

__all__ = ["CodeCache", "Engine"]
