"""KVM's structures as Python values, with KVM's field names, and their bytes (asm/kvm.h).

Nothing here says what a field does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Final, Self

from trapline.arch.cpuid import CpuidEntry

Data = bytes | bytearray | memoryview

GPR_ORDER = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "rflags",
)  # fmt: skip


@dataclass(slots=True)
class Regs:
    """struct kvm_regs."""

    layout: ClassVar[struct.Struct] = struct.Struct("<18Q")

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2

    def pack(self) -> bytes:
        return self.layout.pack(*[getattr(self, name) for name in GPR_ORDER])

    @classmethod
    def unpack(cls, data: Data) -> Self:
        return cls(*cls.layout.unpack(data))


@dataclass(slots=True)
class Segment:
    """struct kvm_segment."""

    layout: ClassVar[struct.Struct] = struct.Struct("<QIH10B")

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741 - KVM's name
    g: int = 0
    avl: int = 0
    unusable: int = 0

    def pack(self) -> bytes:
        return self.layout.pack(
            self.base, self.limit, self.selector, self.type, self.present, self.dpl, self.db,
            self.s, self.l, self.g, self.avl, self.unusable, 0,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: Data) -> Self:
        return cls(*cls.layout.unpack(data)[:-1])

    @property
    def attributes(self) -> int:
        """The descriptor's attributes in VMX's access-rights format."""
        return (
            self.type | self.s << 4 | self.dpl << 5 | self.present << 7 | self.avl << 12
            | self.l << 13 | self.db << 14 | self.g << 15 | self.unusable << 16
        )  # fmt: skip

    @classmethod
    def from_attributes(cls, selector: int, base: int, limit: int, attributes: int) -> Self:
        """From VMX's access-rights format."""
        word = attributes
        return cls(
            base, limit, selector, word & 0xF, word >> 7 & 1, word >> 5 & 3, word >> 14 & 1,
            word >> 4 & 1, word >> 13 & 1, word >> 15 & 1, word >> 12 & 1, word >> 16 & 1,
        )  # fmt: skip


@dataclass(slots=True)
class Dtable:
    """struct kvm_dtable."""

    layout: ClassVar[struct.Struct] = struct.Struct("<QH6x")

    base: int = 0
    limit: int = 0

    def pack(self) -> bytes:
        return self.layout.pack(self.base, self.limit)

    @classmethod
    def unpack(cls, data: Data) -> Self:
        return cls(*cls.layout.unpack(data))


SREGS_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")


@dataclass(slots=True)
class Sregs:
    """struct kvm_sregs."""

    words: ClassVar[struct.Struct] = struct.Struct("<7Q4Q")

    cs: Segment = field(default_factory=Segment)
    ds: Segment = field(default_factory=Segment)
    es: Segment = field(default_factory=Segment)
    fs: Segment = field(default_factory=Segment)
    gs: Segment = field(default_factory=Segment)
    ss: Segment = field(default_factory=Segment)
    tr: Segment = field(default_factory=Segment)
    ldt: Segment = field(default_factory=Segment)
    gdt: Dtable = field(default_factory=Dtable)
    idt: Dtable = field(default_factory=Dtable)
    cr0: int = 0
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int = 0
    interrupt_bitmap: list[int] = field(default_factory=lambda: [0] * 4)

    def pack(self) -> bytes:
        segments = b"".join(getattr(self, name).pack() for name in SREGS_SEGMENTS)
        words = self.words.pack(
            self.cr0, self.cr2, self.cr3, self.cr4, self.cr8, self.efer, self.apic_base,
            *self.interrupt_bitmap,
        )  # fmt: skip
        return segments + self.gdt.pack() + self.idt.pack() + words

    @classmethod
    def unpack(cls, data: Data) -> Self:
        sregs = cls()
        for i, name in enumerate(SREGS_SEGMENTS):
            setattr(sregs, name, Segment.unpack(data[24 * i : 24 * i + 24]))
        sregs.gdt, sregs.idt = Dtable.unpack(data[192:208]), Dtable.unpack(data[208:224])
        words = cls.words.unpack(data[224:312])
        (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8) = words[:5]
        (sregs.efer, sregs.apic_base) = words[5:7]
        sregs.interrupt_bitmap = list(words[7:])
        return sregs


@dataclass(slots=True)
class DebugRegs:
    """struct kvm_debugregs."""

    layout: ClassVar[struct.Struct] = struct.Struct("<4Q3Q72x")

    db: list[int] = field(default_factory=lambda: [0] * 4)
    dr6: int = 0xFFFF0FF0
    dr7: int = 0x400
    flags: int = 0

    def pack(self) -> bytes:
        return self.layout.pack(*self.db, self.dr6, self.dr7, self.flags)

    @classmethod
    def unpack(cls, data: Data) -> Self:
        words = cls.layout.unpack(data)
        return cls(list(words[:4]), *words[4:])


@dataclass(slots=True)
class VcpuEvents:
    """struct kvm_vcpu_events, its inner structures flattened."""

    layout: ClassVar[struct.Struct] = struct.Struct("<4BI 4B 4B II 4B B 26x BQ".replace(" ", ""))

    exception_injected: int = 0
    exception_nr: int = 0
    exception_has_error_code: int = 0
    exception_pending: int = 0
    exception_error_code: int = 0
    interrupt_injected: int = 0
    interrupt_nr: int = 0
    interrupt_soft: int = 0
    interrupt_shadow: int = 0
    nmi_injected: int = 0
    nmi_pending: int = 0
    nmi_masked: int = 0
    sipi_vector: int = 0
    flags: int = 0
    smi_smm: int = 0
    smi_pending: int = 0
    smi_smm_inside_nmi: int = 0
    smi_latched_init: int = 0
    triple_fault_pending: int = 0
    exception_has_payload: int = 0
    exception_payload: int = 0

    def pack(self) -> bytes:
        return self.layout.pack(
            self.exception_injected, self.exception_nr, self.exception_has_error_code,
            self.exception_pending, self.exception_error_code,
            self.interrupt_injected, self.interrupt_nr, self.interrupt_soft,
            self.interrupt_shadow,
            self.nmi_injected, self.nmi_pending, self.nmi_masked, 0,
            self.sipi_vector, self.flags,
            self.smi_smm, self.smi_pending, self.smi_smm_inside_nmi, self.smi_latched_init,
            self.triple_fault_pending, self.exception_has_payload, self.exception_payload,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: Data) -> Self:
        words = cls.layout.unpack(data)
        return cls(*words[:12], *words[13:])


@dataclass(slots=True)
class Fpu:
    """struct kvm_fpu: `fpr` are ST0-ST7 as 80-bit, `xmm` XMM0-XMM15 as 128-bit integers."""

    layout: ClassVar[struct.Struct] = struct.Struct("<128sHHBxHQQ256sI4x")

    fpr: list[int] = field(default_factory=lambda: [0] * 8)
    fcw: int = 0x37F
    fsw: int = 0
    ftwx: int = 0
    last_opcode: int = 0
    last_ip: int = 0
    last_dp: int = 0
    xmm: list[int] = field(default_factory=lambda: [0] * 16)
    mxcsr: int = 0x1F80

    def pack(self) -> bytes:
        return self.layout.pack(
            b"".join(register.to_bytes(16, "little") for register in self.fpr),
            self.fcw, self.fsw, self.ftwx, self.last_opcode, self.last_ip, self.last_dp,
            b"".join(register.to_bytes(16, "little") for register in self.xmm),
            self.mxcsr,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: Data) -> Self:
        fpr, fcw, fsw, ftwx, opcode, ip, dp, xmm, mxcsr = cls.layout.unpack(data)
        return cls(_wide(fpr, 10), fcw, fsw, ftwx, opcode, ip, dp, _wide(xmm, 16), mxcsr)


def _wide(data: bytes, size: int) -> list[int]:
    """Registers of 16 bytes each, of which the low `size` count."""
    return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), 16)]


CPUID_ENTRY: Final = struct.Struct("<7I12x")  # struct kvm_cpuid_entry2


def pack_cpuid(entries: Iterable[CpuidEntry]) -> bytes:
    """The entries of a struct kvm_cpuid2."""
    return b"".join(
        CPUID_ENTRY.pack(
            entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx
        )
        for entry in entries
    )


def unpack_cpuid(data: Data) -> list[CpuidEntry]:
    return [CpuidEntry(*words) for words in CPUID_ENTRY.iter_unpack(data)]


@dataclass(slots=True)
class Translation:
    """struct kvm_translation."""

    linear_address: int
    physical_address: int
    valid: bool
    writeable: bool
    usermode: bool
