"""Long mode's interrupt delivery in native code: to a handler at CPL 0, nothing unusual about it.

processor.delivery is the rule, and does what this shortcut gives up on.
"""

from __future__ import annotations

from trapline.arch.descriptor import (
    AR_DB,
    AR_DPL,
    AR_L,
    AR_P,
    AR_S,
    AR_UNUSABLE,
    FLAT_LIMIT,
    TSS_IST1,
    TSS_RSP0,
    TYPE_ACCESSED,
    TYPE_CODE,
    TYPE_CONFORMING,
)
from trapline.arch.registers import (
    RFLAGS_AC,
    RFLAGS_IF,
    RFLAGS_NT,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VM,
)
from trapline.processor.jit import layout
from trapline.processor.jit.runtime.shortcut import Shortcut
from trapline.processor.jit.text import Ssa, integer

# The handler's code segment: 64-bit, ring 0, not conforming, marked as accessed.
_CODE = AR_P | AR_S | TYPE_CODE | TYPE_ACCESSED | AR_L
_CODE_MASK = _CODE | AR_DPL | TYPE_CONFORMING | AR_DB
# A gate: present, an interrupt or (bit 40) a trap gate.
_GATE, _GATE_MASK, _IS_TRAP = 0x8E << 40, 0x9E << 40, 1 << 40
_CLEARED = RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM
_SIZE = 48  # of the frame with an error code


def _choose_stack(d: Shortcut, gate: Ssa) -> Ssa:
    """RSP of the handler: an interrupt stack, ring 0's, or the present one."""
    f = d.f
    stack = d.both(d.shifted(gate, 32), 7)
    has_own = f.compare("ne", stack, integer(0, 64))
    is_outer = f.compare("ne", d.get("cpl"), integer(0, 64))
    own = d.plus(f.op("shl", stack, integer(3, 64)), TSS_IST1 - 8)
    offset = f.select(has_own, own, integer(TSS_RSP0, 64))
    # Read in any case, so that there is one way through; unused where RSP stays.
    d.require_most(d.plus(offset, 7), d.get("tr_limit"))
    linear = f.op("add", d.get("tr_base"), offset)
    found = f.load("i64", d.host(d.get("tlb_supervisor", "ptr"), linear, 8))
    changes = f.op("or", has_own, is_outer)
    return d.both(f.select(changes, found, d.get("rsp")), ~0xF)


def _push(d: Shortcut, stack: Ssa, flags: Ssa, has_error_code: Ssa) -> Ssa:
    """Write the frame; the new RSP."""
    f = d.f
    low = f.op("sub", stack, integer(_SIZE, 64))
    at = d.host(d.get("tlb_supervisor", "ptr"), low, _SIZE, layout.TAG_WRITE)
    words = (d.get("rip"), d.get("cs_selector"), flags, d.get("rsp"), d.get("ss_selector"))
    for i, word in enumerate(words):
        f.store(word, f.pointer(at, 8 * i + 8))
    with_code, done = f.new_block("with_code"), f.new_block("done")
    f.branch(has_error_code, with_code, done)
    f.open_block(with_code)
    f.store(Ssa("%error_code", "i64"), at)
    f.jump(done)
    f.open_block(done)
    return f.select(has_error_code, low, d.plus(low, 8))


def _deliver() -> str:
    """(state, vector, error code, whether there is one) -> 1 if it has been delivered."""
    parameters = "(ptr %s, i64 %vector, i64 %error_code, i64 %with_code)"
    d = Shortcut(f"define i32 @trapline_deliver{parameters}", "ret i32 0")
    f = d.f
    entry = f.op("shl", Ssa("%vector", "i64"), integer(4, 64))
    d.require_most(d.plus(entry, 15), d.get("idtr_limit"))
    linear = f.op("add", d.get("idtr_base"), entry)
    table = d.host(d.get("tlb_supervisor", "ptr"), linear, 16)
    gate, high = f.load("i64", table), f.load("i64", f.pointer(table, 8))
    d.require_bits(gate, _GATE_MASK, _GATE)
    selector = d.both(d.shifted(gate, 16), 0xFFFC)
    d.require_bits(selector, 4, 0)
    descriptor = d.descriptor(selector, _CODE_MASK, _CODE)
    system = d.get("system_flags")
    d.require_bits(system, RFLAGS_AC, 0)
    flags = f.op("or", system, f.value("i64", "call i64 @trapline_flags(ptr %s)"))
    stack = _choose_stack(d, gate)
    rsp = _push(d, stack, flags, f.compare("ne", Ssa("%with_code", "i64"), integer(0, 64)))
    _commit(d, gate, high, system, rsp)
    d.fill("cs", selector, descriptor)
    d.enter_ring(0)
    f.line("ret i32 1")
    return d.text()


def _commit(d: Shortcut, gate: Ssa, high: Ssa, system: Ssa, rsp: Ssa) -> None:
    """RIP, RSP, RFLAGS; SS becomes null where the ring changes."""
    f = d.f
    middle = d.both(d.shifted(gate, 32), 0xFFFF0000)
    target = f.op("or", d.both(gate, 0xFFFF), middle)
    d.put("rip", f.op("or", target, f.op("shl", high, integer(32, 64))))
    d.put("rsp", rsp)
    is_trap = d.has(gate, _IS_TRAP, _IS_TRAP)
    kept = f.select(is_trap, integer(~_CLEARED, 64), integer(~(_CLEARED | RFLAGS_IF), 64))
    d.put("system_flags", f.op("and", system, kept))
    stays = f.compare("eq", d.get("cpl"), integer(0, 64))
    null = {"selector": 0, "base": 0, "limit": FLAT_LIMIT, "attributes": AR_UNUSABLE}
    for part, word in null.items():
        d.put(f"ss_{part}", f.select(stays, d.get(f"ss_{part}"), integer(word, 64)))


DELIVER = _deliver()
