"""The monitor's code, tables and stacks, as bytes."""

from __future__ import annotations

import struct

from iced_x86 import Decoder, Instruction, Mnemonic, Register

from trapline.arch.exception import WITH_ERROR_CODE
from trapline.process import layout, monitor
from trapline.process.monitor import assemble


def code() -> dict[int, Instruction]:
    made = assemble()
    return {i.ip: i for i in Decoder(64, made.code, ip=layout.MONITOR_CODE)}


def follow(linear: int, count: int = 12) -> list[Instruction]:
    """Instructions from here, through unconditional jumps."""
    listing, found = code(), []
    for _ in range(count):
        instruction = listing[linear]
        linear = instruction.next_ip
        if instruction.mnemonic == Mnemonic.JMP:
            linear = instruction.near_branch_target
        else:
            found.append(instruction)
        if instruction.mnemonic in (Mnemonic.IRETQ, Mnemonic.SYSRETQ):
            break
    return found


def test_it_fits_its_page() -> None:
    made = assemble()
    assert len(made.code) <= monitor.GDT_OFFSET
    pages = monitor.shared_pages(made)
    assert len(pages) == 2 * layout.PAGE
    assert pages[monitor.GDT_OFFSET :].startswith(monitor.gdt())


def test_a_system_call_costs_one_exit() -> None:
    stub = follow(assemble().system_call)
    assert [i.mnemonic for i in stub] == [Mnemonic.OUT, Mnemonic.SYSRETQ]
    assert stub[0].immediate8 == layout.PORT_SYSCALL


def test_every_exception_leaves_the_same_frame_and_goes_back() -> None:
    """Pushes before the OUT make {aux, error} over the hardware's frame; LEAVE drops both."""
    for vector, entry in enumerate(assemble().vectors):
        if vector == 2:
            continue
        pushed, rest = 0, follow(entry, 20)
        for instruction in rest:
            if instruction.mnemonic == Mnemonic.PUSH:
                pushed += 8
            elif instruction.mnemonic == Mnemonic.POP:
                pushed -= 8
            elif instruction.mnemonic == Mnemonic.OUT:
                assert instruction.immediate8 == layout.PORT_VECTOR + vector
                assert pushed == (8 if vector in WITH_ERROR_CODE else 16)
            elif instruction.mnemonic == Mnemonic.ADD:
                assert instruction.immediate(1) == 16
        assert rest[-1].mnemonic == Mnemonic.IRETQ


def test_the_debug_stub_writes_dr6_back_before_it_leaves() -> None:
    """Bit 11 is active low and stays cleared until software sets it (SDM 3B, "DR6")."""
    stub = follow(assemble().vectors[1], 20)
    names = [i.mnemonic for i in stub]
    writes = [i for i in stub if i.mnemonic == Mnemonic.MOV and i.op0_register == Register.DR6]
    assert len(writes) == 1
    assert stub.index(writes[0]) < names.index(Mnemonic.OUT)
    loads = [i for i in stub if i.mnemonic == Mnemonic.MOV and i.op0_register == Register.EAX]
    assert loads[-1].immediate32 == 0xFFFF0FF0


def test_places_on_the_way_back_are_known() -> None:
    made, listing = assemble(), code()
    for entry in (made.sysret, made.leave, made.leave_flushed):
        assert entry in made.returns
    assert all(listing[ip].mnemonic == Mnemonic.OUT for ip in made.exits)
    assert not made.exits & made.returns
    for entry in (made.system_call, made.start, *made.vectors):
        assert entry not in made.returns


def test_gates_lead_to_the_stubs_at_cpl_0() -> None:
    made = assemble()
    table = monitor.idt(made)
    assert len(table) == monitor.IDT_LIMIT + 1
    for vector in range(256):
        entry = made.vectors[vector if vector < 32 else 13]
        low, selector, stack, rights, middle, high, zero = struct.unpack_from(
            "<HHBBHII", table, 16 * vector
        )
        assert low | middle << 16 | high << 32 == entry
        assert (selector, zero) == (layout.KERNEL_CS, 0)
        assert rights & 0x1F == 0x0E
        assert rights >> 5 & 3 == (3 if vector in (3, 4) else 0)
        assert stack == (1 if vector == 2 else 0)


def test_selectors_are_linuxs() -> None:
    descriptors = struct.unpack("<8Q", monitor.gdt())
    user_code, user_data = descriptors[layout.USER_CS >> 3], descriptors[layout.USER_SS >> 3]
    assert (user_code >> 45 & 3, user_code >> 53 & 1) == (3, 1)  # DPL, L
    assert user_data >> 45 & 3 == 3
    kernel_code = descriptors[layout.KERNEL_CS >> 3]
    assert (kernel_code >> 45 & 3, kernel_code >> 53 & 1) == (0, 1)
    # SYSRET takes CS and SS from STAR[63:48] + 16 and + 8, SYSCALL from STAR[47:32].
    assert (monitor.STAR >> 48) + 16 == layout.USER_CS
    assert (monitor.STAR >> 48) + 8 == layout.USER_SS
    assert monitor.STAR >> 32 & 0xFFFF == layout.KERNEL_CS


def test_ports_are_closed_to_the_program() -> None:
    task = monitor.tss(0xFFFF_8000_0000_2000)
    assert struct.unpack_from("<H", task, 102)[0] >= len(task)
    rsp0, ist1 = struct.unpack_from("<Q", task, 4)[0], struct.unpack_from("<Q", task, 36)[0]
    assert rsp0 % 16 == ist1 % 16 == 0
    assert layout.MONITOR_VCPUS < ist1 < rsp0
