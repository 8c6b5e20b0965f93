"""HLT, the interrupt flag, the access flag, TLBs and caches: small privileged instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch import cpuid
from trapline.arch.registers import (
    CR4_PCIDE,
    CR4_PKE,
    RFLAGS_AC,
    RFLAGS_IF,
    RFLAGS_IOPL,
)
from trapline.processor import segment
from trapline.processor.boundary import HALTED, SHADOW_STI
from trapline.processor.fault import Fault
from trapline.processor.microcode import operands
from trapline.processor.microcode.registry import (
    GP,
    MASK_32,
    MASK_64,
    microcode,
    require_privilege,
    undefined,
)

if TYPE_CHECKING:
    from trapline.processor.core import Core
    from trapline.processor.decode import Decoded


@microcode("hlt")
def hlt(core: Core, instruction: Decoded) -> None:
    require_privilege(core)
    if core.guest is not None:
        core.guest.intercept("hlt", instruction.length)
    core.state.activity = HALTED


def _require_iopl(core: Core) -> None:
    """CLI and STI need CPL <= IOPL; CR4.PVI and CR4.VME are not there."""
    state = core.state
    if state.cpl > (state.system_flags & RFLAGS_IOPL) >> 12:
        raise Fault(GP, 0)


@microcode("cli")
def cli(core: Core, instruction: Decoded) -> None:
    _require_iopl(core)
    core.state.system_flags &= ~RFLAGS_IF


@microcode("sti")
def sti(core: Core, instruction: Decoded) -> None:
    _require_iopl(core)
    state = core.state
    if not state.system_flags & RFLAGS_IF:
        state.system_flags |= RFLAGS_IF
        state.interrupt_shadow = SHADOW_STI


@microcode("system_flags_changed")
def system_flags_changed(core: Core, instruction: Decoded, before: int) -> None:
    """POPF changed TF, IF or AC."""
    core.memory.privilege_changed()


def _set_access_flag(core: Core, is_set: bool) -> None:
    state = core.state
    if not core.model.has(cpuid.SMAP) or state.cpl:
        raise undefined()
    flags = state.system_flags
    state.system_flags = flags | RFLAGS_AC if is_set else flags & ~RFLAGS_AC
    core.memory.privilege_changed()


@microcode("stac")
def stac(core: Core, instruction: Decoded) -> None:
    _set_access_flag(core, True)


@microcode("clac")
def clac(core: Core, instruction: Decoded) -> None:
    _set_access_flag(core, False)


# -- TLBs and caches -------------------------------------------------------------------------------


@microcode("invlpg")
def invlpg(core: Core, instruction: Decoded) -> None:
    require_privilege(core)
    bound, state = instruction.operands[0], core.state
    linear = operands.offset_of(state, bound)
    if instruction.form.bitness != 64:
        linear = linear + getattr(state, f"{bound.segment}_base") & MASK_32
    elif bound.segment in ("fs", "gs"):
        linear = linear + getattr(state, f"{bound.segment}_base") & MASK_64
    if core.guest is not None:
        core.guest.intercept("invlpg", instruction.length, linear)
    if instruction.form.bitness != 64 or segment.is_canonical(state, linear):
        core.memory.flush_page(linear)


@microcode("invpcid")
def invpcid(core: Core, instruction: Decoded) -> None:
    """Whatever the type, everything goes: translations carry no PCID here."""
    if not core.model.has(cpuid.INVPCID):
        raise undefined()
    require_privilege(core)
    kind_operand, source = instruction.operands
    if core.guest is not None:
        core.guest.intercept("invpcid", instruction.length)
    kind = operands.read(core, kind_operand, 8 if instruction.form.bitness == 64 else 4)
    descriptor = core.memory.read(operands.linear_of(core, source, 16), 16)
    identifier, linear = descriptor & MASK_64, descriptor >> 64
    state = core.state
    if kind > 3 or identifier >> 12:
        raise Fault(GP, 0)
    if kind < 2 and identifier and not state.cr4 & CR4_PCIDE:
        raise Fault(GP, 0)
    if kind == 0 and not core.msrs.is_canonical(linear):
        raise Fault(GP, 0)
    core.memory.flush()


@microcode("invd")
def invd(core: Core, instruction: Decoded) -> None:
    """Memory is always coherent here, so nothing is lost."""
    require_privilege(core)
    if core.guest is not None:
        core.guest.intercept("invd", instruction.length)


@microcode("wbinvd")
def wbinvd(core: Core, instruction: Decoded) -> None:
    require_privilege(core)
    if core.guest is not None:
        core.guest.intercept("wbinvd", instruction.length)


@microcode("rdpkru")
def rdpkru(core: Core, instruction: Decoded) -> None:
    state = core.state
    if not state.cr4 & CR4_PKE:
        raise undefined()
    if state.rcx & MASK_32:
        raise Fault(GP, 0)
    state.rax, state.rdx = core.memory.walker.pkru, 0


@microcode("wrpkru")
def wrpkru(core: Core, instruction: Decoded) -> None:
    state = core.state
    if not state.cr4 & CR4_PKE:
        raise undefined()
    if state.rcx & MASK_32 or state.rdx & MASK_32:
        raise Fault(GP, 0)
    core.memory.walker.pkru = state.rax & MASK_32
    core.memory.flush()
