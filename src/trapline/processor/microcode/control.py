"""Control and debug registers: MOV CR, MOV DR, LMSW, SMSW, CLTS, XSETBV."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.arch import cpuid, registers
from trapline.arch.debug import DR6_BD, DR7_GD, DR_UPPER
from trapline.arch.descriptor import AR_L
from trapline.arch.registers import (
    CR0_CD,
    CR0_DEFINED,
    CR0_ET,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR3_NOFLUSH,
    CR3_PCID,
    CR4_DE,
    CR4_LA57,
    CR4_OSXSAVE,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMEP,
    CR4_UMIP,
    EFER_LMA,
    EFER_LME,
)
from trapline.processor import debug, segment
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
    from trapline.processor.cpuid import Model
    from trapline.processor.decode import Decoded

_DB = 1
_RELOAD_CR0 = CR0_PG | CR0_CD | CR0_NW
_RELOAD_CR4 = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP
_FLUSH_CR4 = _RELOAD_CR4 | CR4_PCIDE | CR4_LA57
_CR4_ALWAYS = 0x7FF & ~(registers.CR4_VME | registers.CR4_PVI)
_CR4_BY_FEATURE = (
    (cpuid.VME, registers.CR4_VME | registers.CR4_PVI),
    (cpuid.UMIP, CR4_UMIP),
    (cpuid.LA57, CR4_LA57),
    (cpuid.VMX, registers.CR4_VMXE),
    (cpuid.FSGSBASE, registers.CR4_FSGSBASE),
    (cpuid.PCID, CR4_PCIDE),
    (cpuid.XSAVE, CR4_OSXSAVE),
    (cpuid.SMEP, CR4_SMEP),
    (cpuid.SMAP, registers.CR4_SMAP),
    (cpuid.PKU, registers.CR4_PKE),
)


def cr4_defined(model: Model) -> int:
    """The bits of CR4 that this processor has."""
    return _CR4_ALWAYS | sum(bits for feature, bits in _CR4_BY_FEATURE if model.has(feature))


# -- MOV CR ----------------------------------------------------------------------------------------


@microcode("mov_cr")
def mov_cr(core: Core, instruction: Decoded) -> None:
    to_cr = instruction.operands[0].kind == "cr"
    control, general = instruction.operands if to_cr else instruction.operands[::-1]
    number, length, guest = control.number, instruction.length, core.guest
    if number not in (0, 2, 3, 4, 8):
        raise undefined()
    require_privilege(core)
    size = 8 if instruction.form.bitness == 64 else 4
    state = core.state
    if to_cr:
        word = operands.read(core, general, size)
        if guest is not None and number != 2:
            word = guest.write_cr(number, word, general.number, length)
        _LOAD[number](core, word)
        return
    if number == 2:
        word = state.cr2
    elif guest is not None:
        word = guest.read_cr(number, general.number, length)
    else:
        word = getattr(state, f"cr{number}")
    operands.write(core, general, size, word)


def load_cr0(core: Core, word: int) -> None:
    """MOV to CR0 and its relatives: checks, long mode on and off, PDPTEs."""
    state = core.state
    if word >> 32 or word & CR0_PG and not word & CR0_PE or word & CR0_NW and not word & CR0_CD:
        raise Fault(GP, 0)
    word = word & CR0_DEFINED | CR0_ET
    old, efer = state.cr0, state.efer
    if word & CR0_PG and not old & CR0_PG and efer & EFER_LME:
        # SDM 3A, "Initializing IA-32e Mode"
        if not state.cr4 & CR4_PAE or state.cs_attributes & AR_L or not state.tr_attributes & 8:
            raise Fault(GP, 0)
        efer |= EFER_LMA
    elif old & CR0_PG and not word & CR0_PG:
        if state.cr4 & CR4_PCIDE or segment.code_mode(state)[0] == 64:
            raise Fault(GP, 0)
        efer &= ~EFER_LMA
    is_pae = word & CR0_PG and state.cr4 & CR4_PAE and not efer & EFER_LMA
    if is_pae and (word ^ old) & _RELOAD_CR0:
        core.memory.walker.pdptes = core.memory.walker.read_pdptes(state.cr3)
    state.cr0, state.efer = word, efer
    core.memory.mode_changed()
    core.memory.privilege_changed()


def load_cr2(core: Core, word: int) -> None:
    core.state.cr2 = word


def load_cr3(core: Core, word: int) -> None:
    """MOV to CR3: the PDPTEs, and no cached translation survives."""
    state, memory = core.state, core.memory
    keep = bool(state.cr4 & CR4_PCIDE and word & CR3_NOFLUSH)
    if keep:
        word &= ~CR3_NOFLUSH
    if word >> core.model.physical_bits:
        raise Fault(GP, 0)
    if state.cr0 & CR0_PG and state.cr4 & CR4_PAE and not state.efer & EFER_LMA:
        memory.walker.pdptes = memory.walker.read_pdptes(word)
    changed = state.cr3 != word
    state.cr3 = word
    memory.mode_changed()
    if not changed and not keep:
        memory.flush()


def load_cr4(core: Core, word: int) -> None:
    """MOV to CR4."""
    state, memory = core.state, core.memory
    old = state.cr4
    if word & ~cr4_defined(core.model):
        raise Fault(GP, 0)
    is_long = state.efer & EFER_LMA
    if is_long and (not word & CR4_PAE or (word ^ old) & CR4_LA57):
        raise Fault(GP, 0)
    if word & CR4_PCIDE and not old & CR4_PCIDE and (not is_long or state.cr3 & CR3_PCID):
        raise Fault(GP, 0)
    if state.cr0 & CR0_PG and word & CR4_PAE and not is_long and (word ^ old) & _RELOAD_CR4:
        memory.walker.pdptes = memory.walker.read_pdptes(state.cr3)
    state.cr4 = word
    memory.mode_changed()
    if (word ^ old) & _FLUSH_CR4:
        memory.flush()


def load_cr8(core: Core, word: int) -> None:
    if word & ~registers.CR8_TPR:
        raise Fault(GP, 0)
    core.state.cr8 = word


_LOAD = {0: load_cr0, 2: load_cr2, 3: load_cr3, 4: load_cr4, 8: load_cr8}


# -- the machine status word -----------------------------------------------------------------------


@microcode("lmsw")
def lmsw(core: Core, instruction: Decoded) -> None:
    require_privilege(core)
    state = core.state
    source = operands.read(core, instruction.operands[0], 2)
    if core.guest is not None:
        word = core.guest.write_cr0_part(source, False, instruction.length)
    else:  # PE can be set, not cleared
        word = state.cr0 & ~0xE | source & 0xF
    if word is not None:
        load_cr0(core, word)


@microcode("smsw")
def smsw(core: Core, instruction: Decoded) -> None:
    """The low 16 bits of CR0 to memory; as many as the operand has to a register."""
    require_umip(core)
    bound, guest = instruction.operands[0], core.guest
    word = core.state.cr0
    if guest is not None:
        word = guest.read_cr(0, bound.number, instruction.length)
    operands.write(core, bound, 2 if bound.kind == "mem" else bound.width >> 3, word)


def require_umip(core: Core) -> None:
    """SGDT, SIDT, SLDT, SMSW, STR are for CPL 0 if CR4.UMIP says so."""
    if core.state.cr4 & CR4_UMIP:
        require_privilege(core)


@microcode("clts")
def clts(core: Core, instruction: Decoded) -> None:
    require_privilege(core)
    word: int | None = core.state.cr0 & ~registers.CR0_TS
    if core.guest is not None:
        word = core.guest.write_cr0_part(0, True, instruction.length)
    if word is not None:
        core.state.cr0 = word


@microcode("xsetbv")
def xsetbv(core: Core, instruction: Decoded) -> None:
    state, allowed = core.state, core.model.xcr0
    if not state.cr4 & CR4_OSXSAVE:
        raise undefined()
    require_privilege(core)
    if core.guest is not None:
        core.guest.intercept("xsetbv", instruction.length)
    word = (state.rdx & MASK_32) << 32 | state.rax & MASK_32
    if state.rcx & MASK_32 or word & ~allowed or not word & registers.XCR0_X87:
        raise Fault(GP, 0)
    state.xcr0 = word


# -- MOV DR ----------------------------------------------------------------------------------------


@microcode("mov_dr")
def mov_dr(core: Core, instruction: Decoded) -> None:
    to_dr = instruction.operands[0].kind == "dr"
    special, general = instruction.operands if to_dr else instruction.operands[::-1]
    state, number = core.state, special.number
    if number > 7 or number in (4, 5) and state.cr4 & CR4_DE:
        raise undefined()
    require_privilege(core)
    if core.guest is not None:
        core.guest.intercept_dr(number, not to_dr, general.number, instruction.length)
    if state.dr7 & DR7_GD:
        raise Fault(_DB, payload=DR6_BD)
    if number in (4, 5):
        number += 2
    size = 8 if instruction.form.bitness == 64 else 4
    if not to_dr:
        operands.write(core, general, size, getattr(state, f"dr{number}"))
        return
    word = operands.read(core, general, size) & MASK_64
    if number >= 6 and word & DR_UPPER:
        raise Fault(GP, 0)
    if number == 6:
        debug.write_dr6(core, word)
    elif number == 7:
        debug.write_dr7(core, word)
    else:
        setattr(state, f"dr{number}", word)
        core.memory.breakpoints_changed()
