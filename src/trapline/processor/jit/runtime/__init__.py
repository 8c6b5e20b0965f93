"""The native code that is not an instruction, written once as LLVM IR text."""

from trapline.processor.jit.runtime.bulk import MOVES, STORES
from trapline.processor.jit.runtime.locks import SILENT, SITE_BITS, SITE_ENTRY
from trapline.processor.jit.runtime.module import DECLARATIONS, runtime_text
from trapline.processor.jit.runtime.system import SYSTEM_HANDLERS, system_handler

__all__ = [
    "DECLARATIONS", "MOVES", "SILENT", "SITE_BITS", "SITE_ENTRY", "STORES",
    "SYSTEM_HANDLERS", "runtime_text", "system_handler",
]  # fmt: skip
