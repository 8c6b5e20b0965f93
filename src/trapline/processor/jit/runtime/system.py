"""System instructions that stay in native code while nothing unusual is about.

SYSCALL, SYSRETQ, IRETQ to 64-bit code at CPL 3, MOV DR as far as it has no side effect, IN and OUT
as far as their VM exit.
Microcode stays the rule, and does what these shortcuts give up on.
"""

from __future__ import annotations

from trapline.arch.debug import DR6_VOLATILE, DR7_GD
from trapline.arch.descriptor import (
    AR_CODE64,
    AR_DATA32,
    AR_DB,
    AR_DPL,
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
    RFLAGS_IOPL_SHIFT,
    RFLAGS_NT,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VM,
)
from trapline.processor.decode import Decoded
from trapline.processor.flags import CcKind
from trapline.processor.jit import layout
from trapline.processor.jit.leaving import jump_cache_offset
from trapline.processor.jit.runtime.shortcut import STATE, Shortcut
from trapline.processor.jit.text import Ssa, integer
from trapline.processor.state import ARITHMETIC_FLAGS, OFFSET, SYSTEM_FLAGS

SYSTEM_HANDLERS = (
    "trapline_port",
    "trapline_syscall",
    "trapline_sysretq",
    "trapline_iretq",
    "trapline_read_dr",
    "trapline_write_dr6",
)
_RECORD, _TLB = Ssa("%r", "ptr"), Ssa("%t", "ptr")
_HIGHEST = 0x7FFF_FFFF_FFFF  # canonical with 48 and with 57 bits
_FRAME_SIZE = 40  # RIP, CS, RFLAGS, RSP, SS
_SYSRET_FLAGS = 0x3C7FD7  # SDM 2B, SYSRET
_STEPPED = RFLAGS_TF | RFLAGS_RF  # the boundary after the instruction must be looked at

# Access rights of segments as code at CPL 3 has them loaded: which bits matter, and how they are.
_CODE = AR_P | AR_S | AR_DPL | TYPE_CODE | TYPE_ACCESSED | AR_L
_CODE_MASK = _CODE | TYPE_CONFORMING | AR_DB
_STACK = AR_P | AR_S | AR_DPL | TYPE_WRITABLE | TYPE_ACCESSED
_STACK_MASK = _STACK | TYPE_CODE

# A record: handler, RIP, the next RIP, two words (for MOV the byte offsets of the slots), a link.
_RIP, _NEXT, _FIRST, _SECOND, _LINK = 8, 16, 24, 32, 40
_IN, _IMMEDIATE = 1 << 3, 1 << 6  # of the exit qualification; the port is in its upper half
_DEBUG_REGISTERS = {number: OFFSET[f"dr{number}"] for number in (0, 1, 2, 3, 6, 7)}


def system_handler(instruction: Decoded) -> tuple[str, int, int] | None:
    """The runtime function that does an instruction, and its record's two words; None where
    microcode does it in any case."""
    name = instruction.name
    if name in ("in", "out"):
        return "trapline_port", *_port_words(instruction)
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


def _port_words(instruction: Decoded) -> tuple[int, int]:
    """The exit qualification, and which part of RDX it still lacks."""
    is_in = instruction.name == "in"
    data, port = instruction.operands if is_in else instruction.operands[::-1]
    qualification = (data.width >> 3) - 1 | (_IN if is_in else 0)
    if port.kind == "imm":
        return qualification | _IMMEDIATE | (port.immediate & 0xFF) << 16, 0
    return qualification, 0xFFFF


class _Handler(Shortcut):
    """A shortcut that is the handler of an instruction."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"define {layout.HANDLER} @{name}{layout.PARAMETERS}",
            f"musttail call {layout.HANDLER} @trapline_interpret(ptr %s, ptr %r, ptr %t)",
            "ret void",
        )

    def field(self, offset: int) -> Ssa:
        return self.f.load("i64", self.f.pointer(_RECORD, offset))

    def require_quiet(self) -> None:
        """Nobody waits for the next boundary, not even for interrupts to be enabled."""
        self.require_bits(self.f.op("or", self.get("attention"), self.get("lines")), -1, 0)

    def set_flags(self, rflags: Ssa) -> None:
        self.put("cc_kind", int(CcKind.EXPLICIT))
        self.put("cc_src", self.both(rflags, ARITHMETIC_FLAGS))
        system = self.both(rflags, SYSTEM_FLAGS & ~RFLAGS_VM)
        self.put("system_flags", self.either(system, RFLAGS_FIXED_1))

    def go(self, rip: Ssa, cpl: int) -> None:
        """On, in another ring."""
        f = self.f
        table, cache = self.enter_ring(cpl)
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
        handler = self.f.load("ptr", record)
        arguments = f"(ptr %s, {record}, {table})"
        self.f.line(f"musttail call {layout.HANDLER} {handler.name}{arguments}")
        self.f.line("ret void")


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
    _load_fixed(h, code, h.plus(code, 8), 0)
    h.go(h.get("lstar"), 0)
    return h.text()


def _sysret() -> str:
    h = _Handler("trapline_sysretq")
    rip, flags = h.get("rcx"), h.get("r11")
    h.require_bits(h.get("efer"), EFER_SCE, EFER_SCE)
    h.require_bits(h.get("cpl"), -1, 0)
    h.require_bits(flags, RFLAGS_TF | RFLAGS_AC, 0)
    h.require_most(rip, _HIGHEST)
    h.require_quiet()
    h.set_flags(h.both(flags, _SYSRET_FLAGS))
    base = h.shifted(h.get("star"), STAR_SYSRET_SHIFT)
    code, stack = (h.either(h.both(h.plus(base, step), 0xFFFF), 3) for step in (16, 8))
    _load_fixed(h, code, stack, 3)
    h.go(rip, 3)
    return h.text()


# -- IRETQ -----------------------------------------------------------------------------------------


def _require_user_data(h: _Handler) -> None:
    """No data segment that ring 3 would lose."""
    for name in ("es", "ds", "fs", "gs"):
        rights = h.get(f"{name}_attributes")
        unusable = h.has(rights, AR_UNUSABLE, AR_UNUSABLE)
        h.require(h.f.op("or", unusable, h.has(rights, AR_DPL, AR_DPL)))


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
    h.require_most(rip, _HIGHEST)
    h.require_bits(flags, _STEPPED | RFLAGS_AC, 0)
    for selector in (code, stack):
        h.require_bits(selector, 7, 3)  # the GDT, RPL 3
    code_descriptor = h.descriptor(code, _CODE_MASK, _CODE)
    stack_descriptor = h.descriptor(stack, _STACK_MASK, _STACK)
    _require_user_data(h)
    h.put("rsp", rsp)
    h.set_flags(flags)
    h.fill("cs", code, code_descriptor)
    h.fill("ss", stack, stack_descriptor)
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
    word = f.load("i64", f.pointer(STATE, h.field(_SECOND)))
    f.store(word, f.pointer(STATE, h.field(_FIRST)))
    _follow_link(h)
    return h.text()


def _write_dr6() -> str:
    h = _Handler("trapline_write_dr6")
    f = h.f
    _require_debug_registers(h)
    word = f.load("i64", f.pointer(STATE, h.field(_FIRST)))
    h.require_bits(h.shifted(word, 32), -1, 0)
    h.put("dr6", f.op("or", h.both(word, DR6_VOLATILE), h.get("dr6_fixed")))
    _follow_link(h)
    return h.text()


# -- IN and OUT ------------------------------------------------------------------------------------


def _port() -> str:
    """Only as far as the exit, where a hypervisor takes every port access."""
    h = _Handler("trapline_port")
    f = h.f
    h.require_bits(h.get("io_exits"), 1, 1)
    system = h.get("system_flags")
    h.require_bits(system, RFLAGS_VM, 0)
    h.require_most(h.get("cpl"), h.both(h.shifted(system, RFLAGS_IOPL_SHIFT), 3))
    port = f.op("shl", f.op("and", h.get("rdx"), h.field(_SECOND)), integer(16, 64))
    h.put("exit_detail", f.op("or", h.field(_FIRST), port))
    h.put("exit_size", f.op("sub", h.field(_NEXT), h.field(_RIP)))
    h.put("exit_reason", int(layout.Exit.PORT))
    f.store(_RECORD, f.pointer(STATE, OFFSET["exit_record"]))
    f.line("ret void")
    return h.text()


SYSTEM = _port() + _syscall() + _sysret() + _iretq() + _read_dr() + _write_dr6()
