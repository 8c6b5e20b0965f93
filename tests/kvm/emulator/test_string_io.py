"""INS and OUTS: what the VMM is asked for, in all modes and directions."""

from __future__ import annotations

import pytest

from tests.kvm.emulator.devices import DEVICE, DEVICE_PHYSICAL, Vmm, map_device
from tests.kvm.guest import DATA, Guest, handle, long_mode, real_mode
from trapline.arch.registers import RFLAGS_RF, RFLAGS_TF
from trapline.kvm import Kvm, abi, exits

HLT = b"\xf4"
PORT = 0x3F8
DF = 1 << 10


def _guest(kvm: Kvm, code: str, count: int = 1, at: int = DATA, flags: int = 0) -> Vmm:
    guest = long_mode(kvm, bytes.fromhex(code) + HLT)
    map_device(guest)
    regs = guest.vcpu.regs
    regs.rdi = regs.rsi = at
    regs.rcx, regs.rdx = count, PORT
    regs.rflags = 2 | flags
    return Vmm(guest, input=bytes(range(1, 256)) * 32)


def _run(vmm: Vmm) -> Guest:
    assert isinstance(vmm.run(), exits.Hlt)
    return vmm.guest


@pytest.mark.parametrize(
    ("code", "size"), [("6c", 1), ("66 6d", 2), ("6d", 4), ("67 6c", 1), ("48 6d", 4)]
)
def test_ins_stores_what_the_port_gives(software: Kvm, code: str, size: int) -> None:
    vmm = _guest(software, code)
    exit = vmm.guest.vcpu.run()
    assert exit == exits.Io(abi.EXIT_IO_IN, size, PORT, 1, bytearray(size))
    assert vmm.guest.memory.read(DATA, 8) == bytes(8)
    assert isinstance(exit, exits.Io)
    exit.data[:] = b"\x5a" * size
    guest = _run(vmm)
    assert guest.memory.read(DATA, 8) == (b"\x5a" * size).ljust(8, b"\0")
    assert guest.vcpu.regs.rdi == DATA + size


@pytest.mark.parametrize(("code", "size"), [("6e", 1), ("66 6f", 2), ("6f", 4), ("67 6f", 4)])
def test_outs_gives_the_port_what_is_there(software: Kvm, code: str, size: int) -> None:
    vmm = _guest(software, code)
    vmm.guest.memory.write(DATA, b"\1\2\3\4")
    guest = _run(vmm)
    assert vmm.ports == [("out", PORT, size, 1, b"\1\2\3\4"[:size])]
    assert guest.vcpu.regs.rsi == DATA + size


def test_rep_ins_is_asked_for_at_once(software: Kvm) -> None:
    """pio_in_emulated(): up to 1024 bytes and not beyond the page."""
    vmm = _guest(software, "f3 66 6d", 700, DATA + 0xE00)
    guest = _run(vmm)
    assert [(size, count) for _, _, size, count, _ in vmm.ports] == [(2, 256), (2, 444)]
    assert guest.memory.read(DATA + 0xE00, 1400) == (bytes(range(1, 256)) * 6)[:1400]
    assert (guest.vcpu.regs.rcx, guest.vcpu.regs.rdi) == (0, DATA + 0xE00 + 1400)


def test_rep_ins_downwards(software: Kvm) -> None:
    vmm = _guest(software, "f3 6c", 5, DATA + 4, DF)
    guest = _run(vmm)
    assert guest.memory.read(DATA, 6) == b"\5\4\3\2\1\0"
    assert (guest.vcpu.regs.rcx, guest.vcpu.regs.rdi) == (0, DATA - 1)
    assert sum(count for *_, count, _ in vmm.ports) == 5


def test_an_element_may_cross_pages(software: Kvm) -> None:
    vmm = _guest(software, "f3 6d", 2, DATA + 0xFFE)
    guest = _run(vmm)
    assert guest.memory.read(DATA + 0xFFE, 8) == bytes(range(1, 9))


def test_rep_outs_goes_element_by_element(software: Kvm) -> None:
    """emulator_pio_out_emulated() is given a count of 1."""
    vmm = _guest(software, "f3 6e", 3)
    vmm.guest.memory.write(DATA, b"abc")
    guest = _run(vmm)
    assert [port[3:] for port in vmm.ports] == [(1, b"a"), (1, b"b"), (1, b"c")]
    assert (guest.vcpu.regs.rcx, guest.vcpu.regs.rsi) == (0, DATA + 3)


def test_nothing_happens_for_a_count_of_zero(software: Kvm) -> None:
    vmm = _guest(software, "f3 6c", 0)
    guest = _run(vmm)
    assert (vmm.ports, guest.vcpu.regs.rdi) == ([], DATA)


def test_outs_takes_a_segment_override(software: Kvm) -> None:
    vmm = _guest(software, "65 6e")
    vmm.guest.vcpu.gs_base = 0x100
    vmm.guest.memory.write(DATA + 0x100, b"g")
    _run(vmm)
    assert vmm.ports[0][4] == b"g"


def test_a_fault_in_the_middle_loses_nothing(software: Kvm) -> None:
    """The page behind is not there: what came before has been stored, RCX and RDI say so."""
    vmm = _guest(software, "f3 6c", 8, 0x7FFFFC)
    vmm.guest.memory.write_quads(0x3018, 0x200087)  # linear 6 MiB is physical 2 MiB
    handler = handle(vmm.guest, 14, HLT)
    guest = _run(vmm)
    regs = guest.vcpu.regs
    assert (regs.rip, regs.rcx, regs.rdi) == (handler + 1, 4, 0x800000)
    assert guest.memory.read(0x3FFFFC, 4) == b"\1\2\3\4"
    assert guest.vcpu.get_sregs().cr2 == 0x800000
    assert sum(count for *_, count, _ in vmm.ports) == 4


def test_from_a_port_to_a_device(software: Kvm) -> None:
    vmm = _guest(software, "f3 6c", 3, DEVICE)
    guest = _run(vmm)
    assert bytes(vmm.content[:3]) == b"\1\2\3"
    assert vmm.seen == [("write", DEVICE_PHYSICAL + i, 1) for i in range(3)]
    assert guest.vcpu.regs.rcx == 0


def test_from_a_device_to_a_port(software: Kvm) -> None:
    vmm = _guest(software, "f3 6e", 2, DEVICE)
    vmm.content[:2] = b"xy"
    _run(vmm)
    assert [port[4] for port in vmm.ports] == [b"x", b"y"]


def test_each_iteration_is_a_single_step(software: Kvm) -> None:
    vmm = _guest(software, "f3 6c 0f 0b", 3, flags=RFLAGS_TF)
    handle(vmm.guest, 6, HLT)
    handle(vmm.guest, 1, b"\x48\xff\xc3\x48\xcf")  # inc rbx; iretq
    guest = _run(vmm)
    assert guest.vcpu.regs.rbx == 3
    assert guest.memory.read(DATA, 4) == b"\1\2\3\0"


@pytest.mark.parametrize("code", ["f3 6c", "f3 6e"])
@pytest.mark.parametrize("at", [DATA, DEVICE])
def test_a_breakpoint_resumed_over_is_not_hit_between_iterations(
    software: Kvm, code: str, at: int
) -> None:
    """x86_emulate_insn(): RF is set while iterations are left."""
    vmm = _guest(software, code, 3, at, flags=RFLAGS_RF)
    vcpu = vmm.guest.vcpu
    end = vcpu.regs.rip + 3
    debugregs = vcpu.get_debugregs()
    debugregs.db[0], debugregs.dr7 = vcpu.regs.rip, 0x402
    vcpu.set_debugregs(debugregs)
    handle(vmm.guest, 1, HLT)
    guest = _run(vmm)
    assert (guest.vcpu.regs.rip, guest.vcpu.regs.rcx) == (end, 0)
    assert not guest.vcpu.regs.rflags & RFLAGS_RF


def test_an_io_breakpoint_is_hit(software: Kvm) -> None:
    vmm = _guest(software, "6c")
    sregs = vmm.guest.vcpu.get_sregs()
    sregs.cr4 |= 1 << 3
    vmm.guest.vcpu.set_sregs(sregs)
    debugregs = vmm.guest.vcpu.get_debugregs()
    debugregs.db[0], debugregs.dr7 = PORT, 0x400 | 1 | 2 << 16
    vmm.guest.vcpu.set_debugregs(debugregs)
    handler = handle(vmm.guest, 1, HLT)
    guest = _run(vmm)
    assert guest.vcpu.regs.rip == handler + 1
    assert guest.vcpu.get_debugregs().dr6 & 0xF == 1


def test_at_cpl_3_the_permission_comes_first(software: Kvm) -> None:
    guest = long_mode(software, b"\x6c", cpl=3)
    guest.vcpu.regs.rdi = DATA
    handler = handle(guest, 13, HLT)
    vmm = Vmm(guest)
    assert isinstance(vmm.run(), exits.Hlt)
    assert (guest.vcpu.regs.rip, vmm.ports) == (handler + 1, [])


@pytest.mark.parametrize("prefix", ["", "66", "67"])
def test_in_real_mode_di_wraps_around(software: Kvm, prefix: str) -> None:
    """16-bit addresses: SI and DI, CX, and the segments' bases."""
    guest = real_mode(software, bytes.fromhex(prefix + "f3 6c") + HLT)
    regs = guest.vcpu.regs
    regs.rdi, regs.rcx, regs.rdx = 0x1234FFFF if prefix != "67" else 0xFFFF, 2, PORT
    sregs = guest.vcpu.get_sregs()
    sregs.es.base, sregs.es.selector = 0x20000, 0x2000
    sregs.es.limit, sregs.es.g = 0xFFFFFFFF, 1
    guest.vcpu.set_sregs(sregs)
    vmm = Vmm(guest, input=b"ab")
    assert isinstance(vmm.run(), exits.Hlt)
    if prefix == "67":
        assert guest.memory.read(0x2FFFF, 2) == b"ab"
        assert guest.vcpu.regs.rdi == 0x10001
    else:
        assert (guest.memory.read(0x2FFFF, 1), guest.memory.read(0x20000, 1)) == (b"a", b"b")
        assert guest.vcpu.regs.rdi == 0x12340001
    assert guest.vcpu.regs.rcx == 0
