"""Checks of VM entry on segment registers, descriptor tables (part of exit 33).

SDM 3C, "Checks on Guest Segment Registers" and "Checks on Guest Descriptor-Table Registers".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trapline.arch import registers, vmx
from trapline.arch.descriptor import AR_G, AR_P, AR_S, AR_UNUSABLE, AR_VIRTUAL_8086
from trapline.arch.vmcs import Field
from trapline.processor.vmx.capability import Features
from trapline.processor.vmx.control_checks import is_canonical

if TYPE_CHECKING:
    from trapline.processor.vmx.vmcs import Vmcs

_DATA = ("ES", "SS", "DS", "FS", "GS")
_AR_RESERVED = 0xFFFE0F00
_CODE_ACCESSED = (9, 11, 13, 15)
_L, _DB = 1 << 13, 1 << 14


class _Segment:
    """One segment register's fields."""

    def __init__(self, vmcs: Vmcs, name: str) -> None:
        self.name = name
        self.selector = vmcs.read(Field[f"GUEST_{name}_SELECTOR"])
        self.base = vmcs.read(Field[f"GUEST_{name}_BASE"])
        self.limit = vmcs.read(Field[f"GUEST_{name}_LIMIT"])
        self.rights = vmcs.read(Field[f"GUEST_{name}_AR_BYTES"])
        self.type = self.rights & 0xF
        self.dpl = self.rights >> 5 & 3
        self.rpl = self.selector & 3
        self.is_usable = not self.rights & AR_UNUSABLE


def segment_complaints(vmcs: Vmcs, model: Features, is_unrestricted: bool) -> Iterator[str]:
    segments = {name: _Segment(vmcs, name) for name in ("CS", *_DATA, "LDTR", "TR")}
    if vmcs.read(Field.GUEST_RFLAGS) & registers.RFLAGS_VM:
        for name in ("CS", *_DATA):
            yield from _virtual_8086(segments[name])
    else:
        is_protected = bool(vmcs.read(Field.GUEST_CR0) & registers.CR0_PE)
        is_long = bool(vmcs.read(Field.VM_ENTRY_CONTROLS) & vmx.ENTRY_IA32E_GUEST)
        yield from _bases(segments, model)
        yield from _code(segments["CS"], segments["SS"], is_unrestricted, is_long)
        yield from _stack(segments["SS"], segments["CS"], is_unrestricted, is_protected)
        for name in ("ES", "DS", "FS", "GS"):
            yield from _data(segments[name], is_unrestricted)
    yield from _system(vmcs, model, segments["LDTR"], segments["TR"])
    yield from _tables(vmcs, model)


def _virtual_8086(segment: _Segment) -> Iterator[str]:
    expected = (segment.selector << 4, 0xFFFF, AR_VIRTUAL_8086)
    if (segment.base, segment.limit, segment.rights) != expected:
        yield f"{segment.name} in virtual-8086 mode"


def _bases(segments: dict[str, _Segment], model: Features) -> Iterator[str]:
    for name in ("FS", "GS"):
        if not is_canonical(segments[name].base, model):
            yield f"{name} base is not canonical"
    if segments["CS"].base >> 32:
        yield "CS base has upper bits"
    for name in ("SS", "DS", "ES"):
        if segments[name].is_usable and segments[name].base >> 32:
            yield f"{name} base has upper bits"


def _common(segment: _Segment) -> Iterator[str]:
    """What all usable code and data segments share: S, P, reserved bits, limit against G."""
    rights = segment.rights
    if not rights & AR_S or not rights & AR_P or rights & _AR_RESERVED:
        yield f"{segment.name} rights {rights:#x}"
    yield from _granularity(segment)


def _granularity(segment: _Segment) -> Iterator[str]:
    has_g = segment.rights & AR_G
    if (segment.limit & 0xFFF != 0xFFF and has_g) or (segment.limit >> 20 and not has_g):
        yield f"{segment.name} limit {segment.limit:#x} against G"


def _code(cs: _Segment, ss: _Segment, is_unrestricted: bool, is_long: bool) -> Iterator[str]:
    if cs.type not in _CODE_ACCESSED and not (is_unrestricted and cs.type == 3):
        yield f"CS type {cs.type}"
    yield from _common(cs)
    if cs.type == 3 and cs.dpl:
        yield "CS.DPL of a data segment"
    if cs.type in (9, 11) and cs.dpl != ss.dpl:
        yield f"CS.DPL {cs.dpl} is not SS.DPL {ss.dpl}"
    if cs.type in (13, 15) and cs.dpl > ss.dpl:
        yield f"conforming CS.DPL {cs.dpl} above SS.DPL {ss.dpl}"
    if is_long and cs.rights & _L and cs.rights & _DB:
        yield "CS with L and D"


def _stack(ss: _Segment, cs: _Segment, is_unrestricted: bool, is_protected: bool) -> Iterator[str]:
    if ss.is_usable and ss.type not in (3, 7):
        yield f"SS type {ss.type}"
    if not is_unrestricted and ss.rpl != cs.rpl:
        yield "SS.RPL is not CS.RPL"
    if not is_unrestricted and ss.dpl != ss.rpl:
        yield "SS.DPL is not SS.RPL"
    if ss.dpl and (cs.type == 3 or not is_protected):
        yield "SS.DPL without protection"
    if ss.is_usable:
        yield from _common(ss)


def _data(segment: _Segment, is_unrestricted: bool) -> Iterator[str]:
    if not segment.is_usable:
        return
    is_code, is_readable = segment.type & 8, segment.type & 2
    if not segment.type & 1 or (is_code and not is_readable):
        yield f"{segment.name} type {segment.type}"
    if not is_unrestricted and segment.type <= 11 and segment.dpl < segment.rpl:
        yield f"{segment.name}.DPL below its RPL"
    yield from _common(segment)


def _system(vmcs: Vmcs, model: Features, ldtr: _Segment, tr: _Segment) -> Iterator[str]:
    is_long = vmcs.read(Field.VM_ENTRY_CONTROLS) & vmx.ENTRY_IA32E_GUEST
    if tr.type != 11 and (is_long or tr.type != 3):
        yield f"TR type {tr.type}"
    for segment in (tr, ldtr):
        if segment is ldtr and not ldtr.is_usable:
            continue
        rights = segment.rights
        if rights & (AR_S | _AR_RESERVED) or not rights & AR_P or segment.selector & 4:
            yield f"{segment.name} rights {rights:#x} or selector {segment.selector:#x}"
        if not is_canonical(segment.base, model):
            yield f"{segment.name} base is not canonical"
        yield from _granularity(segment)
    if not tr.is_usable:
        yield "TR is unusable"
    if ldtr.is_usable and ldtr.type != 2:
        yield f"LDTR type {ldtr.type}"


def _tables(vmcs: Vmcs, model: Features) -> Iterator[str]:
    for name in ("GDTR", "IDTR"):
        if not is_canonical(vmcs.read(Field[f"GUEST_{name}_BASE"]), model):
            yield f"{name} base is not canonical"
        if vmcs.read(Field[f"GUEST_{name}_LIMIT"]) > 0xFFFF:
            yield f"{name} limit"
