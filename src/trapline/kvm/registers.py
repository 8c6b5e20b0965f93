"""KVM_GET/SET_REGS, SREGS, FPU, XSAVE and the reset state: structures to registers and back."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from trapline.arch import registers
from trapline.arch.debug import DR6_ACTIVE_LOW, DR7_FIXED_1
from trapline.arch.paging import PAT_RESET
from trapline.kvm import guest_debug
from trapline.kvm.structures import (
    GPR_ORDER,
    SREGS_SEGMENTS,
    Dtable,
    Fpu,
    Regs,
    Segment,
    Sregs,
)

if TYPE_CHECKING:
    from trapline.kvm.vcpu import SoftwareVcpu

_LEGACY = struct.Struct("<HHBxHQQII")
_GENERAL = GPR_ORDER[:16]
_FCW_WRITABLE = 0x1F3F
_RESET_SIGNATURE = 0x600  # RDX: family 6


def reset(vcpu: SoftwareVcpu) -> None:
    """RESET (SDM 3A, "Processor State After Reset"); CPUID and memory stay."""
    backend, state = vcpu.backend, vcpu.state
    _restart(vcpu, registers.CR0_RESET)
    state.xcr0 = registers.XCR0_RESET
    backend.set_pat(PAT_RESET)
    backend.set_debugctl(0)
    set_fpu(vcpu, Fpu())


def init(vcpu: SoftwareVcpu) -> None:
    """INIT (kvm_vcpu_reset with init_event).

    It keeps CR0.CD and NW, the x87 and SSE registers, XCR0, the time-stamp counter, and the MSRs:
    MTRRs, PAT, DEBUGCTL and the APIC base among them.
    """
    backend, state, events = vcpu.backend, vcpu.state, vcpu.events
    kept = backend.get_cr0() & (registers.CR0_CD | registers.CR0_NW)
    _restart(vcpu, kept | registers.CR0_ET)
    vcpu.cpuid.follow(0, state.xcr0)
    vcpu.debug.set_all((0, 0, 0, 0), DR7_FIXED_1)
    state.dr6 = DR6_ACTIVE_LOW
    state.pending_debug = 0
    backend.set_interrupt_shadow(0)
    backend.set_nmi_mask(False)
    backend.drop_injection()
    events.clear()


def start_at(vcpu: SoftwareVcpu, vector: int) -> None:
    """SIPI: real mode at 4 KiB times the vector (kvm_vcpu_deliver_sipi_vector)."""
    cs = vcpu.backend.get_segment("cs")
    cs.selector, cs.base = vector << 8, vector << 12
    vcpu.backend.set_segment("cs", cs)
    vcpu.backend.set_rip(0)


def _restart(vcpu: SoftwareVcpu, cr0: int) -> None:
    """What RESET and INIT have in common."""
    backend, state = vcpu.backend, vcpu.state
    signature = vcpu.cpuid.answer(1, 0)[0]
    for name in _GENERAL:
        setattr(state, name, 0)
    state.rdx = signature or _RESET_SIGNATURE
    backend.set_efer(0)
    backend.set_cr0(cr0)
    backend.set_cr3(0)
    backend.set_cr4(0)
    state.cr2 = state.cr8 = 0
    for name in ("ds", "es", "fs", "gs", "ss"):
        backend.set_segment(name, Segment(0, 0xFFFF, 0, 3, 1, 0, 0, 1))
    backend.set_segment("cs", Segment(0xFFFF0000, 0xFFFF, 0xF000, 11, 1, 0, 0, 1))
    backend.set_segment("ldt", Segment(0, 0xFFFF, 0, 2, 1))
    backend.set_segment("tr", Segment(0, 0xFFFF, 0, 11, 1))
    backend.set_table("gdt", Dtable(0, 0xFFFF))
    backend.set_table("idt", Dtable(0, 0xFFFF))
    backend.set_rip(0xFFF0)
    backend.set_rflags(2)


def get_regs(vcpu: SoftwareVcpu) -> Regs:
    state = vcpu.state
    regs = Regs(*[getattr(state, name) for name in GPR_ORDER])
    regs.rflags = guest_debug.get_rflags(vcpu)
    return regs


def set_regs(vcpu: SoftwareVcpu, regs: Regs) -> None:
    """Also takes back a pending exception, as KVM does."""
    for name in _GENERAL:
        setattr(vcpu.state, name, getattr(regs, name))
    vcpu.backend.set_rip(regs.rip)
    guest_debug.set_rflags(vcpu, regs.rflags | registers.RFLAGS_FIXED_1)
    vcpu.events.exception.pending = False


def get_sregs(vcpu: SoftwareVcpu) -> Sregs:
    backend, state, events = vcpu.backend, vcpu.state, vcpu.events
    sregs = Sregs()
    for name in SREGS_SEGMENTS:
        setattr(sregs, name, backend.get_segment(name))
    sregs.gdt, sregs.idt = backend.get_table("gdt"), backend.get_table("idt")
    sregs.cr0, sregs.cr4 = backend.get_cr0(), backend.get_cr4()
    sregs.cr2, sregs.cr3, sregs.cr8 = state.cr2, state.cr3, state.cr8
    sregs.efer, sregs.apic_base = state.efer, vcpu.apic_base
    if events.interrupt_injected and not events.interrupt_soft:
        vector = events.interrupt_vector
        sregs.interrupt_bitmap[vector >> 6] |= 1 << (vector & 63)
    return sregs


def set_sregs(vcpu: SoftwareVcpu, sregs: Sregs) -> None:
    """__set_sregs(); EINVAL where the registers cannot stand together."""
    if not _is_valid(vcpu, sregs) or not vcpu.control.write_apic_base(sregs.apic_base, True):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    backend, state = vcpu.backend, vcpu.state
    backend.set_table("gdt", sregs.gdt)
    backend.set_table("idt", sregs.idt)
    state.cr2, state.cr8 = sregs.cr2, sregs.cr8 & registers.CR8_TPR
    if vcpu.apic is not None:
        vcpu.apic.write_tpr(state.cr8 << 4)
    backend.set_cr3(sregs.cr3)
    backend.set_efer(sregs.efer)
    backend.set_cr0(sregs.cr0)
    backend.set_cr4(sregs.cr4)
    vcpu.cpuid.follow(sregs.cr4, state.xcr0)
    is_pae = sregs.cr0 & registers.CR0_PG and sregs.cr4 & registers.CR4_PAE
    if is_pae and not sregs.efer & registers.EFER_LMA:
        backend.load_pdptes()
    for name in SREGS_SEGMENTS:
        backend.set_segment(name, getattr(sregs, name))
    waiting = sum(bits << 64 * word for word, bits in enumerate(sregs.interrupt_bitmap))
    if waiting:
        vcpu.events.queue_interrupt((waiting & -waiting).bit_length() - 1)


def _is_valid(vcpu: SoftwareVcpu, sregs: Sregs) -> bool:
    """kvm_is_valid_sregs()."""
    is_paging = sregs.cr0 & registers.CR0_PG
    if sregs.efer & registers.EFER_LME and is_paging:
        if not sregs.cr4 & registers.CR4_PAE or not sregs.efer & registers.EFER_LMA:
            return False
        if sregs.cr3 >> vcpu.cpuid.physical_bits:
            return False
    elif sregs.efer & registers.EFER_LMA or sregs.cs.l:
        return False
    if sregs.cr0 >> 32 or (is_paging and not sregs.cr0 & registers.CR0_PE):
        return False
    if sregs.cr0 & registers.CR0_NW and not sregs.cr0 & registers.CR0_CD:
        return False
    return vcpu.control.allows_cr4(sregs.cr4)


# -- floating point -----------------------------------------------------------------------------


def get_fpu(vcpu: SoftwareVcpu) -> Fpu:
    state = vcpu.state
    top = state.fsw >> registers.FSW_TOP_SHIFT & 7
    return Fpu(
        [state.x87((top + i) & 7) for i in range(8)],
        state.fcw,
        state.fsw,
        state.ftw,
        state.fop,
        state.fip,
        state.fdp,
        [state.xmm(i) for i in range(16)],
        state.mxcsr,
    )


def set_fpu(vcpu: SoftwareVcpu, fpu: Fpu) -> None:
    state = vcpu.state
    state.fcw = fpu.fcw & _FCW_WRITABLE | registers.FCW_RESET
    state.fsw, state.ftw = _summarised(fpu.fsw, state.fcw), fpu.ftwx
    state.fop, state.fip, state.fdp = fpu.last_opcode, fpu.last_ip, fpu.last_dp
    state.fcs = state.fds = 0
    state.mxcsr = fpu.mxcsr & registers.MXCSR_MASK
    top = fpu.fsw >> registers.FSW_TOP_SHIFT & 7
    for i, word in enumerate(fpu.fpr):
        state.set_x87((top + i) & 7, word)
    for i, word in enumerate(fpu.xmm):
        state.set_xmm(i, word)


def _summarised(fsw: int, fcw: int) -> int:
    """The status word with ES and B as FXRSTOR leaves them: by the flags that are not masked."""
    summary = registers.FSW_ES | registers.FSW_B
    return fsw & ~summary | (summary if fsw & ~fcw & registers.FCW_MASKS else 0)


def get_xsave(vcpu: SoftwareVcpu) -> bytes:
    """The standard format (SDM 1, "Standard Format of Extended Region"): x87 and SSE."""
    fpu = get_fpu(vcpu)
    area = bytearray(4096)
    _LEGACY.pack_into(
        area, 0, fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode, fpu.last_ip, fpu.last_dp,
        fpu.mxcsr, registers.MXCSR_MASK,
    )  # fmt: skip
    area[32:160] = b"".join(word.to_bytes(16, "little") for word in fpu.fpr)
    area[160:416] = b"".join(word.to_bytes(16, "little") for word in fpu.xmm)
    area[512:520] = (registers.XCR0_X87 | registers.XCR0_SSE).to_bytes(8, "little")  # XSTATE_BV
    return bytes(area)


def set_xsave(vcpu: SoftwareVcpu, area: bytes) -> None:
    """Components that XSTATE_BV leaves out get their initial values."""
    present = int.from_bytes(area[512:520], "little")
    fcw, fsw, ftw, opcode, ip, dp, mxcsr, _ = _LEGACY.unpack_from(area)
    invalid = present & ~(registers.XCR0_X87 | registers.XCR0_SSE)
    if len(area) < 576 or invalid or mxcsr & ~registers.MXCSR_MASK:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    fpu = Fpu()
    if present & registers.XCR0_X87:
        fpu = Fpu(_wide(area[32:160], 10), fcw, fsw, ftw, opcode, ip, dp)
    if present & registers.XCR0_SSE:
        fpu.xmm = _wide(area[160:416], 16)
    fpu.mxcsr = mxcsr
    set_fpu(vcpu, fpu)


def _wide(data: bytes, size: int) -> list[int]:
    return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), 16)]
