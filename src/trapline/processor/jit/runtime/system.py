"""System instructions that stay in native code while nothing unusual is about.

SYSCALL, SYSRETQ, IRETQ to 64-bit code at CPL 3, and MOV DR as far as it has no side effect.
Microcode stays the rule: each handler here asks first whether it would come to the same plain
end, and otherwise hands over to the reference engine with nothing done.
"""

from __future__ import annotations

from trapline.arch.debug import DR6_VOLATILE, DR7_GD
from trapline.arch.descriptor import (
    AR_CODE64,
    AR_DATA32,
    AR_DESCRIPTOR,
    AR_DPL,
    AR_G,
    AR_L,
    AR_P,
    AR_S,
    AR_UNUSABLE,
    FLAT_LIMIT,
    TYPE_ACCESSED,
    TYPE_CODE,
    TYPE_CONFORMING,
    TYPE_WRITABLE,
    with_dpl,
)
from trapline.arch.msr import STAR_SYSCALL_SHIFT, STAR_SYSRET_SHIFT
from trapline.arch.registers import (
    EFER_SCE,
    RFLAGS_AC,
    RFLAGS_FIXED_1,
    RFLAGS_NT,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VM,
)
from trapline.processor.decode import Decoded
from trapline.processor.flags import CcKind
from trapline.processor.jit import layout
from trapline.processor.jit.leaving import jump_cache_offset
from trapline.processor.jit.text import Function, Ssa, integer
from trapline.processor.state import ARITHMETIC_FLAGS, OFFSET, SYSTEM_FLAGS

_STATE, _RECORD, _TLB = Ssa("%s", "ptr"), Ssa("%r", "ptr"), Ssa("%t", "ptr")
_HIGHEST = integer(0x7FFF_FFFF_FFFF, 64)  # canonical with 48 and with 57 bits
_FRAME_SIZE = 40  # RIP, CS, RFLAGS, RSP, SS
_SYSRET_FLAGS = 0x3C7FD7  # SDM 2B, SYSRET
_STEPPED = RFLAGS_TF | RFLAGS_RF  # the boundary after the instruction must be looked at

# Access rights of segments as code at CPL 3 has them loaded: which bits matter, and how they are.
_CODE = AR_P | AR_S | AR_DPL | TYPE_CODE | TYPE_ACCESSED | AR_L
_CODE_MASK = _CODE | TYPE_CONFORMING | 1 << 14  # D
_STACK = AR_P | AR_S | AR_DPL | TYPE_WRITABLE | TYPE_ACCESSED
_STACK_MASK = _STACK | TYPE_CODE

# The words of a record: handler, RIP, the next RIP, two slots' byte offsets, a link.
_NEXT, _FIRST, _SECOND, _LINK = 16, 24, 32, 40
_DEBUG_REGISTERS = {number: OFFSET[f"dr{number}"] for number in (0, 1, 2, 3, 6, 7)}


def system_handler(instruction: Decoded) -> tuple[str, int, int] | None:
    """The runtime function that does an instruction of 64-bit code, and the two slots it is
    about; None where microcode does it in any case."""
    name = instruction.name
    if instruction.form.bitness != 64:
        return None
    if name in ("syscall", "sysretq", "iretq"):
        return f"trapline_{name}", 0, 0
    if name == "mov":
        target, source = instruction.operands
        if source.kind == "dr" and source.number in _DEBUG_REGISTERS:
            return "trapline_read_dr", target.offset, _DEBUG_REGISTERS[source.number]
        if target.kind == "dr" and target.number == 6:
            return "trapline_write_dr6", source.offset, 0
    return None


class _Handler:
    """A handler being written: `require` everything, then `put`."""

    def __init__(self, name: str) -> None:
        self.f = Function(f"define {layout.HANDLER} @{name}{layout.PARAMETERS}")

    def get(self, name: str) -> Ssa:
        return self.f.load("i64", self.f.pointer(_STATE, OFFSET[name]))

    def put(self, name: str, word: Ssa | int) -> None:
        word = integer(word, 64) if isinstance(word, int) else word
        self.f.store(word, self.f.pointer(_STATE, OFFSET[name]))

    def field(self, offset: int) -> Ssa:
        return self.f.load("i64", self.f.pointer(_RECORD, offset))

    def both(self, word: Ssa, mask: int) -> Ssa:
        return self.f.op("and", word, integer(mask, 64))

    def either(self, word: Ssa, bits: int) -> Ssa:
        return self.f.op("or", word, integer(bits, 64))

    def shifted(self, word: Ssa, count: int) -> Ssa:
        return self.f.op("lshr", word, integer(count, 64))

    def require(self, condition: Ssa) -> None:
        """Go on only so; else it is the reference engine's."""
        on = self.f.new_block("on")
        self.f.branch(condition, on, "plain")
        self.f.open_block(on)

    def require_bits(self, word: Ssa, mask: int, wanted: int) -> None:
        self.require(self.f.compare("eq", self.both(word, mask), integer(wanted, 64)))

    def require_quiet(self) -> None:
        """Nobody waits for the next boundary, not even for interrupts to be enabled."""
        waiting = self.f.op("or", self.get("attention"), self.get("lines"))
        self.require_bits(waiting, -1, 0)

    def host(self, table: Ssa, linear: Ssa, size: int) -> Ssa:
        """Where on the host the bytes are; they must be readable, and in one page."""
        f = self.f
        self.require(f.compare("ule", self.both(linear, 0xFFF), integer(0x1000 - size, 64)))
        index = self.both(self.shifted(linear, 12), layout.TLB_INDEX_MASK)
        entry = f.pointer(table, f.op("mul", index, integer(layout.TLB_ENTRY, 64)))
        tag = f.load("i64", f.pointer(entry, layout.TAG_READ))
        self.require(f.compare("eq", tag, self.either(linear, 0xFFF)))
        addend = f.load("i64", f.pointer(entry, layout.ADDEND))
        return f.value("ptr", f"inttoptr {f.op('add', linear, addend)} to ptr")

    def set_flags(self, rflags: Ssa) -> None:
        self.put("cc_kind", int(CcKind.EXPLICIT))
        self.put("cc_src", self.both(rflags, ARITHMETIC_FLAGS))
        system = self.both(rflags, SYSTEM_FLAGS & ~RFLAGS_VM)
        self.put("system_flags", self.either(system, RFLAGS_FIXED_1))

    def go(self, rip: Ssa, cpl: int) -> None:
        """To another ring; RFLAGS.AC must be clear."""
        f, ring = self.f, "user" if cpl else "supervisor"
        self.put("cpl", cpl)
        table = f.load("ptr", f.pointer(_STATE, OFFSET[f"tlb_{ring}"]))
        cache = f.load("ptr", f.pointer(_STATE, OFFSET[f"jump_cache_{ring}"]))
        f.store(table, f.pointer(_STATE, OFFSET["tlb"]))
        f.store(cache, f.pointer(_STATE, OFFSET["jump_cache"]))
        entry = f.pointer(cache, jump_cache_offset(f, rip))
        known = f.compare("eq", f.load("i64", entry), rip)
        hit, miss = f.new_block("hit"), f.new_block("miss")
        f.branch(known, hit, miss)
        f.open_block(miss)
        self.put("exit_reason", int(layout.Exit.LOOKUP))
        self.put("exit_rip", rip)
        f.line("ret void")
        f.open_block(hit)
        self.dispatch(f.load("ptr", f.pointer(entry, 8)), table)

    def dispatch(self, record: Ssa, table: Ssa = _TLB) -> None:
        f = self.f
        handler = f.load("ptr", record)
        arguments = f"(ptr %s, {record}, {table})"
        f.line(f"musttail call {layout.HANDLER} {handler.name}{arguments}")
        f.line("ret void")

    def text(self) -> str:
        f = self.f
        f.open_block("plain")
        f.line(f"musttail call {layout.HANDLER} @trapline_interpret(ptr %s, ptr %r, ptr %t)")
        f.line("ret void")
        return f.text()


# -- SYSCALL and SYSRETQ ---------------------------------------------------------------------------


def _load_fixed(h: _Handler, code: Ssa, stack: Ssa, cpl: int) -> None:
    """CS and SS as these two load them, whatever the descriptors say."""
    for name, selector, rights in (("cs", code, AR_CODE64), ("ss", stack, AR_DATA32)):
        h.put(f"{name}_selector", selector)
        h.put(f"{name}_base", 0)
        h.put(f"{name}_limit", FLAT_LIMIT)
        h.put(f"{name}_attributes", with_dpl(rights, cpl))


def _syscall() -> str:
    h = _Handler("trapline_syscall")
    f = h.f
    system = h.get("system_flags")
    h.require_bits(h.get("efer"), EFER_SCE, EFER_SCE)
    h.require_bits(system, _STEPPED, 0)
    rflags = f.op("or", system, f.value("i64", "call i64 @trapline_flags(ptr %s)"))
    kept = f.op("and", rflags, f.op("xor", h.get("sfmask"), integer(-1, 64)))
    h.require_bits(kept, RFLAGS_AC, 0)
    h.require_bits(h.get("attention"), -1, 0)
    h.put("rcx", h.field(_NEXT))
    h.put("r11", rflags)
    h.set_flags(kept)
    code = h.both(h.shifted(h.get("star"), STAR_SYSCALL_SHIFT), 0xFFFC)
    _load_fixed(h, code, f.op("add", code, integer(8, 64)), 0)
    h.go(h.get("lstar"), 0)
    return h.text()


def _sysret() -> str:
    h = _Handler("trapline_sysretq")
    f = h.f
    rip, flags = h.get("rcx"), h.get("r11")
    h.require_bits(h.get("efer"), EFER_SCE, EFER_SCE)
    h.require_bits(h.get("cpl"), -1, 0)
    h.require_bits(flags, RFLAGS_TF | RFLAGS_AC, 0)
    h.require(f.compare("ule", rip, _HIGHEST))
    h.require_quiet()
    h.set_flags(h.both(flags, _SYSRET_FLAGS))
    base = h.shifted(h.get("star"), STAR_SYSRET_SHIFT)
    code, stack = (
        h.either(h.both(f.op("add", base, integer(step, 64)), 0xFFFF), 3) for step in (16, 8)
    )
    _load_fixed(h, code, stack, 3)
    h.go(rip, 3)
    return h.text()


# -- IRETQ -----------------------------------------------------------------------------------------


def _descriptor(h: _Handler, selector: Ssa, mask: int, wanted: int) -> Ssa:
    """The GDT's descriptor for a selector with RPL 3; its rights must be as wanted."""
    f = h.f
    h.require_bits(selector, 7, 3)
    h.require(f.compare("ne", h.both(selector, 0xFFFC), integer(0, 64)))
    h.require(f.compare("ule", h.either(selector, 7), h.get("gdtr_limit")))
    linear = f.op("add", h.get("gdtr_base"), h.both(selector, 0xFFF8))
    supervisor = f.load("ptr", f.pointer(_STATE, OFFSET["tlb_supervisor"]))
    descriptor = f.load("i64", h.host(supervisor, linear, 8))
    h.require_bits(descriptor, mask << 40, wanted << 40)
    return descriptor


def _fill(h: _Handler, name: str, selector: Ssa, descriptor: Ssa) -> None:
    """As segment.fill(): arch.descriptor.parse_segment() in native code."""
    f = h.f
    low, high = h.both(h.shifted(descriptor, 16), 0xFFFFFF), h.shifted(descriptor, 56)
    limit = f.op("or", h.both(descriptor, 0xFFFF), h.both(h.shifted(descriptor, 32), 0xF0000))
    pages = h.either(f.op("shl", limit, integer(12, 64)), 0xFFF)
    is_in_pages = f.compare("ne", h.both(descriptor, AR_G << 40), integer(0, 64))
    h.put(f"{name}_selector", selector)
    h.put(f"{name}_base", f.op("or", low, f.op("shl", high, integer(24, 64))))
    h.put(f"{name}_limit", f.select(is_in_pages, pages, limit))
    h.put(f"{name}_attributes", h.both(h.shifted(descriptor, 40), AR_DESCRIPTOR))


def _require_user_data(h: _Handler) -> None:
    """No data segment that ring 3 would lose."""
    f = h.f
    for name in ("es", "ds", "fs", "gs"):
        rights = h.get(f"{name}_attributes")
        unusable = f.compare("ne", h.both(rights, AR_UNUSABLE), integer(0, 64))
        user = f.compare("eq", h.both(rights, AR_DPL), integer(AR_DPL, 64))
        h.require(f.op("or", unusable, user))


def _iretq() -> str:
    h = _Handler("trapline_iretq")
    f = h.f
    h.require_bits(h.get("cpl"), -1, 0)
    h.require_bits(h.get("system_flags"), RFLAGS_NT, 0)
    h.require_bits(h.get("nmi_blocked"), -1, 0)
    h.require_quiet()
    frame = h.host(_TLB, h.get("rsp"), _FRAME_SIZE)
    rip, code, flags, rsp, stack = (
        f.load("i64", f.pointer(frame, offset)) for offset in range(0, _FRAME_SIZE, 8)
    )
    code, stack = h.both(code, 0xFFFF), h.both(stack, 0xFFFF)
    h.require(f.compare("ule", rip, _HIGHEST))
    h.require_bits(flags, _STEPPED | RFLAGS_AC, 0)
    code_descriptor = _descriptor(h, code, _CODE_MASK, _CODE)
    stack_descriptor = _descriptor(h, stack, _STACK_MASK, _STACK)
    _require_user_data(h)
    h.put("rsp", rsp)
    h.set_flags(flags)
    _fill(h, "cs", code, code_descriptor)
    _fill(h, "ss", stack, stack_descriptor)
    h.go(rip, 3)
    return h.text()


# -- MOV DR ----------------------------------------------------------------------------------------


def _require_debug_registers(h: _Handler) -> None:
    h.require_bits(h.get("cpl"), -1, 0)
    h.require_bits(h.get("mov_dr_exits"), -1, 0)
    h.require_bits(h.get("dr7"), DR7_GD, 0)


def _follow_link(h: _Handler) -> None:
    h.dispatch(h.f.load("ptr", h.f.pointer(_RECORD, _LINK)))


def _read_dr() -> str:
    h = _Handler("trapline_read_dr")
    f = h.f
    _require_debug_registers(h)
    word = f.load("i64", f.pointer(_STATE, h.field(_SECOND)))
    f.store(word, f.pointer(_STATE, h.field(_FIRST)))
    _follow_link(h)
    return h.text()


def _write_dr6() -> str:
    h = _Handler("trapline_write_dr6")
    f = h.f
    _require_debug_registers(h)
    word = f.load("i64", f.pointer(_STATE, h.field(_FIRST)))
    h.require_bits(h.shifted(word, 32), -1, 0)
    h.put("dr6", f.op("or", h.both(word, DR6_VOLATILE), h.get("dr6_fixed")))
    _follow_link(h)
    return h.text()


SYSTEM = _syscall() + _sysret() + _iretq() + _read_dr() + _write_dr6()
SYSTEM_HANDLERS = (
    "trapline_syscall",
    "trapline_sysretq",
    "trapline_iretq",
    "trapline_read_dr",
    "trapline_write_dr6",
)
