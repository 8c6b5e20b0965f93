"""The native code that is not an instruction, written once as LLVM IR text."""

from trapline.processor.jit.runtime.bulk import MOVES, STORES
from trapline.processor.jit.runtime.locks import SITE_BITS, SITE_ENTRY
from trapline.processor.jit.runtime.module import DECLARATIONS, runtime_text

__all__ = ["DECLARATIONS", "MOVES", "SITE_BITS", "SITE_ENTRY", "STORES", "runtime_text"]
