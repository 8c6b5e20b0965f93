"""The runtime module: everything native that is not an instruction.

`%s` is the State block, `%r` an operation record, `%t` the TLB.
"""

from __future__ import annotations

from trapline.processor.jit.runtime.bulk import BULK
from trapline.processor.jit.runtime.bus import BUS
from trapline.processor.jit.runtime.deliver import DELIVER
from trapline.processor.jit.runtime.entering import ENTER
from trapline.processor.jit.runtime.exits import EXITS
from trapline.processor.jit.runtime.flags import FLAGS
from trapline.processor.jit.runtime.locks import END_LOCK
from trapline.processor.jit.runtime.slow import SLOW_MEMORY
from trapline.processor.jit.runtime.system import SYSTEM
from trapline.processor.jit.text import METADATA


def runtime_text() -> str:
    """The whole module, as IR."""
    return EXITS + ENTER + BUS + SLOW_MEMORY + END_LOCK + FLAGS + BULK + SYSTEM + DELIVER + METADATA


DECLARATIONS = """
declare i64 @trapline_flags(ptr) nounwind willreturn memory(read)
declare i64 @trapline_flags_of(i64, i64, i64) nounwind willreturn memory(none)
declare ptr @trapline_slow_read(ptr, ptr, ptr, i64, i64) cold
declare ptr @trapline_slow_write(ptr, ptr, ptr, i64, i64) cold
declare ptr @trapline_slow_lock(ptr, ptr, ptr, i64, i64) cold
declare void @trapline_end_write(ptr, ptr, ptr, i64, i64) cold
declare void @trapline_end_lock(ptr, ptr, ptr, i64, i64) cold
declare i64 @trapline_bulk_move(ptr, ptr, i64)
declare i64 @trapline_bulk_store(ptr, ptr, i64)
"""
