"""Each check on segment and descriptor-table registers, violated alone, in every mode: exit 33.

SDM 3C, "Checks on Guest Segment Registers" and "Checks on Guest Descriptor-Table Registers".
"""

from __future__ import annotations

import pytest

from tests.processor.vmx.modes import MODES, Fields
from tests.processor.vmx.violations import Row, accept, machine_of, refuse, row
from trapline.arch import descriptor, vmx

CODE64, DATA, UNUSABLE = descriptor.AR_CODE64, descriptor.AR_DATA32, descriptor.AR_UNUSABLE
CODE32, TSS, V86 = descriptor.AR_CODE32, descriptor.AR_TSS_BUSY, descriptor.AR_VIRTUAL_8086
LDT = 0x82
USABLE_BY_DATA = ("es", "ds", "fs", "gs")
FLAT = 0xFFFFFFFF


def segment(name: str, rights: int, limit: int = FLAT, **more: int) -> Fields:
    return {f"guest_{name}_ar_bytes": rights, f"guest_{name}_limit": limit, **more}


def dpl(rights: int, level: int) -> int:
    return descriptor.with_dpl(rights, level)


def typed(rights: int, kind: int) -> int:
    return rights & ~0xF | kind


def levels(cs: int, ss: int, kind: int = 0xB) -> Fields:
    """CPL by SS, and a code segment of that DPL; the selectors' RPLs follow SS."""
    return {
        "guest_cs_ar_bytes": dpl(typed(CODE64, kind), cs),
        "guest_ss_ar_bytes": dpl(DATA, ss),
        "guest_cs_selector": 0x08 | ss,
        "guest_ss_selector": 0x10 | ss,
    }


VIRTUAL_8086 = [
    row(f"{name}'s {what}", {f"guest_{name}_{what}": bad}, {}, "virtual_8086")
    for name in ("cs", "ss", "ds", "es", "fs", "gs")
    for what, bad in (
        ("base", 0x10010),
        ("selector", 0x1001),
        ("limit", 0xFFFFFFFF),
        ("ar_bytes", V86 & ~0x60),
        ("ar_bytes", V86 | UNUSABLE),
    )
]
BASES = [
    *(
        row(f"{name} canonical", {f"guest_{name}_base": 1 << 56}, {f"guest_{name}_base": 1 << 55})
        for name in ("fs", "gs", "tr", "gdtr", "idtr")
    ),
    *(
        row(f"{name} below 4 GiB", {f"guest_{name}_base": 1 << 32}, {f"guest_{name}_base": 1 << 31})
        for name in ("cs", "ss", "ds", "es")
    ),
    *(
        row(
            f"{name} if usable",
            {f"guest_{name}_base": 1 << 63},
            {f"guest_{name}_base": 1 << 63, f"guest_{name}_ar_bytes": UNUSABLE},
        )
        for name in ("ss", "ds", "es")
    ),
    row(
        "LDTR if usable",
        segment("ldtr", LDT, 0xFFF, guest_ldtr_base=1 << 62),
        segment("ldtr", UNUSABLE, 0xFFF, guest_ldtr_base=1 << 62),
    ),
    row("FS even if unusable", segment("fs", UNUSABLE, guest_fs_base=1 << 62), {}),
    *(
        row(
            f"{name} limit",
            {f"guest_{name}_limit": 0x10000},
            {f"guest_{name}_limit": 0xFFFF},
        )
        for name in ("gdtr", "idtr")
    ),
]
SHARED = [
    row(f"{name}: {what}", segment(name, bad, limit), segment(name, good, limit))
    for name, usual in (("cs", CODE64), ("ss", DATA), *((n, DATA) for n in USABLE_BY_DATA))
    for what, bad, good, limit in (
        ("S", usual & ~0x10, usual, FLAT),
        ("P", usual & ~0x80, usual, FLAT),
        *((f"bit {b}", usual | 1 << b, usual | 1 << 12, FLAT) for b in (8, 11, 17, 31)),
        ("G is 0 where the limit's low bits are not all 1", usual, usual & ~0x8000, 0xFFFFE),
        ("G is 1 where it has high bits", usual & ~0x8000, usual, 0x1FFFFF),
    )
]
CODE = [
    *(
        row(f"CS type {kind}", {"guest_cs_ar_bytes": typed(CODE64, kind)}, {})
        for kind in (0, 1, 2, 3, 7, 8, 10, 12, 14)
    ),
    *(
        row(f"CS type {kind} is right", levels(1, 0, kind), levels(0, 0, kind))
        for kind in (9, 11, 13, 15)
    ),
    row(
        "CS type 3 is for unrestricted guests",
        {"guest_cs_ar_bytes": typed(CODE64, 3)},
        {
            "guest_cs_ar_bytes": typed(CODE64, 3),
            "cpu_based_vm_exec_control": vmx.PROC_TRUE_DEFAULT1 | vmx.PROC_SECONDARY,
            "secondary_vm_exec_control": vmx.PROC2_EPT | vmx.PROC2_UNRESTRICTED_GUEST,
            "ept_pointer": 0x100000 | 6 | 3 << 3,
        },
    ),
    row(
        "CS type 3 has DPL 0",
        {"guest_cs_ar_bytes": dpl(typed(CODE64, 3), 3)},
        {"guest_cs_ar_bytes": typed(CODE64, 3)},
        "with_ept",
    ),
    row("DPL of code above SS", levels(3, 0), levels(3, 3)),
    row("DPL of code below SS", levels(0, 3), levels(0, 3, 15)),
    row("conforming DPL above SS", levels(3, 0, 15), levels(3, 3, 15)),
    row(
        "L and D in IA-32e mode",
        {"guest_cs_ar_bytes": CODE64 | 1 << 14},
        {"guest_cs_ar_bytes": CODE32},
    ),
    row(
        "L and D elsewhere",
        {"guest_cs_ar_bytes": typed(CODE32 | 1 << 13, 10)},
        {"guest_cs_ar_bytes": CODE32 | 1 << 13},
        "protected_mode",
    ),
]
STACK = [
    *(
        row(
            f"SS type {kind}",
            {"guest_ss_ar_bytes": typed(DATA, kind)},
            {"guest_ss_ar_bytes": typed(DATA, 7), "guest_ss_limit": FLAT},
        )
        for kind in (0, 1, 2, 5, 6, 9, 11, 15)
    ),
    row(
        "SS type if usable",
        {"guest_ss_ar_bytes": typed(DATA, 1)},
        {"guest_ss_ar_bytes": typed(DATA, 1) | UNUSABLE},
    ),
    row("SS.RPL is CS.RPL", {"guest_ss_selector": 0x13}, {"guest_ss_selector": 0x18}),
    row(
        "SS.RPL is free if unrestricted",
        {"guest_ss_selector": 0x13, "guest_ss_ar_bytes": dpl(DATA, 3)},
        {"guest_ss_selector": 0x13},
        "with_ept",
    ),
    row("SS.DPL is SS.RPL", {"guest_ss_ar_bytes": dpl(DATA, 1)}, levels(1, 1)),
    row(
        "SS.DPL in real mode",
        {"guest_ss_ar_bytes": 0xF3, "guest_cs_ar_bytes": 0xFB},
        {"guest_ss_ar_bytes": 0x93},
        "real_mode",
    ),
    row(
        "SS.DPL with CS type 3",
        {"guest_cs_ar_bytes": typed(CODE64, 3), "guest_ss_ar_bytes": dpl(DATA, 3)},
        {"guest_cs_ar_bytes": typed(CODE64, 3)},
        "with_ept",
    ),
    row(
        "SS.DPL even if unusable",
        {"guest_ss_ar_bytes": UNUSABLE | 3 << 5},
        {"guest_ss_ar_bytes": UNUSABLE},
    ),
]
OTHERS = [
    *(
        row(
            f"{name} type {kind}",
            {f"guest_{name}_ar_bytes": typed(DATA, kind)},
            {f"guest_{name}_ar_bytes": typed(DATA, kind) | UNUSABLE},
        )
        for name in USABLE_BY_DATA
        for kind in (0, 2, 4, 6, 8, 9, 10, 12, 13, 14)
    ),
    *(
        row(
            f"{name} may be readable code",
            {f"guest_{name}_ar_bytes": typed(DATA, 9)},
            {f"guest_{name}_ar_bytes": typed(DATA, kind)},
        )
        for name, kind in zip(USABLE_BY_DATA, (11, 15, 1, 5), strict=True)
    ),
    *(
        row(
            f"{name}.DPL below its RPL",
            {f"guest_{name}_selector": 0x13},
            {f"guest_{name}_selector": 0x13, f"guest_{name}_ar_bytes": dpl(DATA, 3)},
        )
        for name in USABLE_BY_DATA
    ),
    row(
        "of conforming code DPL is free",
        {"guest_ds_selector": 0x13, "guest_ds_ar_bytes": typed(DATA, 11)},
        {"guest_ds_selector": 0x13, "guest_ds_ar_bytes": typed(DATA, 15)},
    ),
    row(
        "if unrestricted, too",
        {"guest_ds_selector": 0x13, "guest_ds_ar_bytes": typed(DATA, 9)},
        {"guest_ds_selector": 0x13},
        "with_ept",
    ),
]
SYSTEM = [
    *(
        row(f"TR type {kind}", {"guest_tr_ar_bytes": typed(TSS, kind)}, {}, mode)
        for mode in ("long_mode", "protected_mode")
        for kind in (1, 2, 9, 15)
    ),
    row("a 16-bit TSS in IA-32e mode", {"guest_tr_ar_bytes": typed(TSS, 3)}, {}),
    row(
        "a 16-bit TSS elsewhere",
        {"guest_tr_ar_bytes": typed(TSS, 2)},
        {"guest_tr_ar_bytes": typed(TSS, 3)},
        "protected_mode",
    ),
    *(
        row(f"TR in {mode}", {"guest_tr_ar_bytes": bad}, {}, mode)
        for mode in ("virtual_8086", "real_mode")
        for bad in (TSS & ~0x80, TSS | UNUSABLE)
    ),
    row("TR's S", {"guest_tr_ar_bytes": TSS | 0x10}, {}),
    row("TR's P", {"guest_tr_ar_bytes": TSS & ~0x80}, {}),
    row("TR unusable", {"guest_tr_ar_bytes": TSS | UNUSABLE}, {}),
    row("TR's TI", {"guest_tr_selector": 0x34}, {"guest_tr_selector": 0x33}),
    row("TR's G 1", segment("tr", TSS | 0x8000, 0x67), segment("tr", TSS | 0x8000, 0xFFF)),
    row("TR's G 0", segment("tr", TSS, 0x100000), segment("tr", TSS, 0xFFFFF)),
    *(
        row(
            f"TR bit {bit}",
            {"guest_tr_ar_bytes": TSS | 1 << bit},
            {"guest_tr_ar_bytes": TSS | 1 << 12},
        )
        for bit in (8, 11, 17, 31)
    ),
    *(
        row(f"LDTR: {what}", bad | {"guest_ldtr_base": 0x1000}, good)
        for what, bad, good in (
            ("type", segment("ldtr", 0x83, 0xFFF), segment("ldtr", LDT, 0xFFF)),
            ("if usable", segment("ldtr", 0x83, 0xFFF), segment("ldtr", 0x83 | UNUSABLE, 0xFFF)),
            ("S", segment("ldtr", LDT | 0x10, 0xFFF), segment("ldtr", LDT, 0xFFF)),
            ("P", segment("ldtr", 0x02, 0xFFF), segment("ldtr", LDT, 0xFFF)),
            ("G 1", segment("ldtr", LDT | 0x8000, 0x7FE), segment("ldtr", LDT, 0x7FE)),
            ("G 0", segment("ldtr", LDT, 0x1FFFFF), segment("ldtr", LDT | 0x8000, 0x1FFFFF)),
            ("bit 8", segment("ldtr", LDT | 0x100, 0xFFF), segment("ldtr", LDT | 0x1000, 0xFFF)),
            (
                "TI",
                segment("ldtr", LDT, 0xFFF, guest_ldtr_selector=0x34),
                segment("ldtr", LDT, 0xFFF, guest_ldtr_selector=0x33),
            ),
        )
    ),
]
ROWS: dict[str, Row] = {
    f"{group}: {one[1]}: {one[0]}: {tuple(one[2].values())[0]:#x}": one
    for group, rows in (
        ("virtual-8086", VIRTUAL_8086),
        ("base and limit", BASES),
        ("shared", SHARED),
        ("CS", CODE),
        ("SS", STACK),
        ("data", OTHERS),
        ("system", SYSTEM),
    )
    for one in rows
}


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_segment_is_exit_33_and_its_neighbour_is_not(name: str) -> None:
    _, mode, bad, good, qualification = ROWS[name]
    refuse(machine_of(mode), bad, qualification)
    machine = machine_of("with_ept") if "ept_pointer" in good else machine_of(mode)
    accept(machine, good)


@pytest.mark.parametrize("mode", MODES)
def test_tables_and_task_register_are_looked_at_in_every_mode(mode: str) -> None:
    for bad in (
        {"guest_gdtr_base": 1 << 62},
        {"guest_idtr_limit": 1 << 16},
        {"guest_tr_base": 1 << 62},
        {"guest_tr_ar_bytes": UNUSABLE},
    ):
        refuse(machine_of(mode), bad, 0)


def test_no_row_hides_another() -> None:
    groups = (VIRTUAL_8086, BASES, SHARED, CODE, STACK, OTHERS, SYSTEM)
    assert len(ROWS) == sum(len(rows) for rows in groups)
