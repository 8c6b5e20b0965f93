"""The fast engine; llvmlite stays inside."""

from trapline.processor.jit.blocks import CodeCache
from trapline.processor.jit.engine import Engine
from trapline.processor.jit.sites import SiteTable, SiteTotal

__all__ = ["CodeCache", "Engine", "SiteTable", "SiteTotal"]
