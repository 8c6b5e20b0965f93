"""The VMCB: where its fields lie, and that the current one is the register file."""

from __future__ import annotations

import struct

from tests.processor.svm.machine import CODE, HLT, Machine
from trapline.arch import svm
from trapline.arch.svm import ExitCode
from trapline.processor import Vmcb, enter_svm
from trapline.processor.svm.vmcb import FIELDS


def test_fields_lie_where_the_manual_has_them() -> None:
    vmcb = Vmcb()
    vmcb.write("dr7", 0x1122)
    vmcb.write("dr6", 0xFFFF07F0)
    vmcb.write("dbgctl", 4)
    vmcb.write("bus_lock_counter", 0xBEEF)
    vmcb.intercept(165)
    vmcb.write("cs_selector", 0x2B)
    vmcb.write("cs_attributes", 0xAFB)
    vmcb.write("cs_base", 0x123456789)
    image = vmcb.image()
    assert len(image) == 4096
    assert struct.unpack_from("<2Q", image, 0x560) == (0x1122, 0xFFFF07F0)
    assert struct.unpack_from("<Q", image, 0x670) == (4,)
    assert struct.unpack_from("<H", image, 0x120) == (0xBEEF,)
    assert struct.unpack_from("<I", image, 0x014) == (1 << 5,)
    assert struct.unpack_from("<HHIQ", image, 0x410) == (0x2B, 0xAFB, 0, 0x123456789)


def test_every_field_keeps_what_is_written() -> None:
    vmcb = Vmcb()
    for name, slot in FIELDS.items():
        word = 0x5A81 & (1 << 8 * slot.size) - 1
        vmcb.write(name, word)
        expected = word
        if name == "int_ctl":  # V_NMI_BLOCKING means nothing without V_NMI_ENABLE
            expected = word & ~svm.INT_CTL_V_NMI_BLOCKING
        elif name.endswith("_attributes"):
            expected = word & 0xFFF
        assert vmcb.read(name) == expected, name


def test_fields_do_not_overlap() -> None:
    taken: dict[int, str] = {}
    for name, (offset, size) in FIELDS.items():
        for byte in range(offset, offset + size):
            assert byte not in taken, (name, taken.get(byte))
            taken[byte] = name


def test_the_current_vmcb_is_the_register_file(engine: str) -> None:
    machine = Machine(b"\x48\xff\xc0" + HLT, engine=engine)  # inc rax; hlt
    machine.write(rax=41)
    machine.enter()
    assert machine.read("rax") == machine.state.rax == 42
    assert machine.read("rip") == machine.state.rip == CODE + 3
    machine.state.rax = 7
    assert machine.read("rax") == 7


def test_another_vmcb_takes_the_registers_over(engine: str) -> None:
    machine = Machine(HLT, engine=engine)
    machine.write(rax=1)
    machine.enter()
    other = Machine(HLT, cpl=0, engine=engine).vmcb
    other.write("rax", 2)
    other.write("rip", CODE)
    assert enter_svm(machine.core, other).code == ExitCode.HLT
    assert machine.state.rax == 2
    assert machine.read("rax") == 1
    machine.enter()
    assert machine.state.rax == 1
    assert other.read("rax") == 2
    assert other.read("rflags") & 2
