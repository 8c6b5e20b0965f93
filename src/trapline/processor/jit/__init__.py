"""The fast engine; llvmlite stays inside."""

from trapline.processor.jit import sse_float, vector, vector_across, x87
from trapline.processor.jit.blocks import Block, CodeCache
from trapline.processor.jit.cache import cache_root
from trapline.processor.jit.compiler import compiler
from trapline.processor.jit.engine import Engine
from trapline.processor.jit.layout import Native
from trapline.processor.jit.runtime import SILENT
from trapline.processor.jit.sites import SiteTable, SiteTotal

# The families of primitives are named so that importing this room registers them.
__all__ = [
    "Block", "CodeCache", "Engine", "Native", "SILENT", "SiteTable", "SiteTotal", "cache_root",
    "compiler", "sse_float", "vector", "vector_across", "x87",
]  # fmt: skip
