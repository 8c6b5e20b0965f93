"""SMEP, SMAP, UMIP, protection keys, PCID and INVPCID, five levels: bare and under the hypervisor.

The guest switches each on itself, so that the hypervisor's part in it is tried too.
"""

from __future__ import annotations

import pytest

from tests.kvm.matrix import modes
from tests.kvm.matrix.laboratory import LOG, SURFACES, Laboratory
from tests.kvm.matrix.model import Event
from trapline.arch import descriptor
from trapline.arch.paging import PTE_U
from trapline.kvm import Segment

UMIP, LA57, PCIDE, SMEP, SMAP, PKE, FSGSBASE = 11, 12, 17, 20, 21, 22, 16  # bits of CR4
UD2, HLT = "0f0b", "f4"
LONG = ["long", "long 5-level"]
everywhere = pytest.mark.parametrize("name", SURFACES)
NOT_PRESENT, PRESENT, WRITE, USER, FETCH, KEY = 0, 1, 2, 4, 16, 32


def enable(*bits: int) -> str:
    """mov rax, cr4; or eax, bits; mov cr4, rax: eleven bytes."""
    word = sum(1 << bit for bit in bits).to_bytes(4, "little").hex()
    return f"0f20e0 0d{word} 0f22e0"


SIZE = 11


def supervisor(name: str, mode: str = "long") -> Laboratory:
    """CPL 0; only the page at LOG is a user's."""
    lab = Laboratory(name, mode)
    for linear in modes.EVERY_PAGE:
        if linear != LOG:
            lab.page(linear, clear=PTE_U)
    return lab


@everywhere
@pytest.mark.parametrize("mode", [*LONG, "PAE", "paged 32"])
def test_smep_stops_the_kernel_in_user_pages(name: str, mode: str) -> None:
    lab = supervisor(name, mode)
    lab.put(LOG, HLT)
    jump = f"b8{LOG.to_bytes(4, 'little').hex()} ffe0"  # mov eax, LOG; jmp rax
    assert lab.run(f"{jump}") is None
    assert lab.get("rip") == LOG + 1
    event = lab.run(f"{enable(SMEP)} {jump}")
    assert event == Event(14, LOG - lab.at, error_code=PRESENT | FETCH)


@everywhere
@pytest.mark.parametrize("mode", [*LONG, "PAE"])
def test_smap_keeps_the_kernel_from_user_data(name: str, mode: str) -> None:
    lab = supervisor(name, mode)
    read, lock = "8b17", "f0ff07"  # mov edx, [rdi]; lock inc dword [rdi]
    at = {"rdi": LOG}
    assert lab.run(f"{enable(SMAP)} {read}", **at) == Event(14, SIZE, error_code=PRESENT)
    write = PRESENT | WRITE
    assert lab.run(f"{enable(SMAP)} {lock}", **at) == Event(14, SIZE, error_code=write)
    stac, clac = "0f01cb", "0f01ca"
    code = f"{enable(SMAP)} {stac} {read} {lock} {clac} {read}"
    assert lab.run(code, **at) == Event(14, SIZE + 11, error_code=PRESENT)
    assert lab.word(LOG) == 1


@everywhere
def test_smap_does_not_listen_to_ac_for_what_the_processor_reads_itself(name: str) -> None:
    """SDM 3A, "Determination of Access Rights": an LDT in a user page, AC or not."""
    lab = supervisor(name)
    ldt = Segment.from_attributes(0x20, LOG, 0xF, descriptor.AR_LDT)
    lab.surface.system_registers().ldt = ldt
    word = descriptor.build_segment(0, descriptor.FLAT_LIMIT, descriptor.AR_DATA32)
    lab.memory.write(LOG, word.to_bytes(8, "little"))
    load = "b804000000 8ed8"  # mov eax, 4; mov ds, eax
    assert lab.run(f"{load} {HLT}") is None
    event = lab.run(f"{enable(SMAP)} 0f01cb {load}")
    assert event == Event(14, SIZE + 8, error_code=PRESENT)


@everywhere
@pytest.mark.parametrize("code", ["0f0107", "0f010f", "0f0007", "0f000f", "0f0127"])
def test_umip_keeps_tables_from_users(name: str, code: str) -> None:
    """SGDT, SIDT, SLDT, STR, SMSW: #GP(0) at CPL 3, as ever at CPL 0."""
    lab = Laboratory(name, "long", 3)
    lab.surface.system_registers().cr4 |= 1 << UMIP
    assert lab.run(f"{code} {UD2}", rdi=LOG) == Event(13, 0, error_code=0)
    lab = Laboratory(name, "long", 3)
    assert lab.run(f"{code} {UD2}", rdi=LOG) == Event(6, 3)
    lab = Laboratory(name, "long")
    assert lab.run(f"{enable(UMIP)} {code} {UD2}", rdi=LOG) == Event(6, SIZE + 3)


@everywhere
@pytest.mark.parametrize("mode", LONG)
@pytest.mark.parametrize(
    ("rights", "access", "error"),
    [
        (1 << 2, "8b17", PRESENT | USER | KEY),  # AD: read
        (1 << 2, "8917", PRESENT | WRITE | USER | KEY),
        (2 << 2, "8917", PRESENT | WRITE | USER | KEY),  # WD: write
        (2 << 2, "f0ff07", PRESENT | WRITE | USER | KEY),
        (2 << 2, "8b17", None),
        (3 << 4, "8917", None),  # another key
    ],
)
def test_protection_keys(name: str, mode: str, rights: int, access: str, error: int | None) -> None:
    lab = Laboratory(name, mode, 3)
    lab.page(LOG, set_=1 << 59)  # key 1
    lab.surface.system_registers().cr4 |= 1 << PKE
    wrpkru = f"b8{rights.to_bytes(4, 'little').hex()} 31c9 31d2 0f01ef"
    event = lab.run(f"{wrpkru} {access} {UD2}", rdi=LOG)
    length = len(bytes.fromhex(access))
    expected = Event(6, 12 + length) if error is None else Event(14, 12, error_code=error)
    assert event == expected


@everywhere
def test_rdpkru_reads_back_and_needs_pke(name: str) -> None:
    lab = Laboratory(name, "long")
    assert lab.run("31c9 0f01ee") == Event(6, 2)
    code = f"{enable(PKE)} 31c9 31d2 b8 04000000 0f01ef 31c0 0f01ee {HLT}"
    assert lab.run(code) is None
    assert (lab.get("rax"), lab.get("rdx")) == (4, 0)
    assert lab.run(f"{enable(PKE)} b807000000 31c9 0fa2 {HLT}") is None  # cpuid 7
    assert lab.get("rcx") >> 4 & 1  # OSPKE


# -- PCID ----------------------------------------------------------------------------------------

NO_FLUSH = 1 << 63
MOV_CR3 = "0f22da"  # mov cr3, rdx
BACK = f"0f20d9 {HLT}"  # mov rcx, cr3; hlt


@everywhere
@pytest.mark.parametrize("mode", LONG)
def test_cr3_has_a_pcid_and_bit_63_does_not_stay(name: str, mode: str) -> None:
    lab = Laboratory(name, mode)
    cr3 = modes.TABLES | 0x123
    assert lab.run(f"{enable(PCIDE)} {MOV_CR3} {BACK}", rdx=cr3 | NO_FLUSH) is None
    assert lab.get("rcx") == cr3


@everywhere
def test_bit_63_of_cr3_without_pcide(name: str) -> None:
    lab = Laboratory(name, "long")
    event = lab.run(f"{MOV_CR3}", rdx=modes.TABLES | NO_FLUSH)
    assert event == Event(13, 0, error_code=0)


@everywhere
def test_pcide_needs_long_mode_and_pcid_0(name: str) -> None:
    lab = Laboratory(name, "PAE")
    assert lab.run(enable(PCIDE)) == Event(13, 8, error_code=0)
    lab = Laboratory(name, "long")
    event = lab.run(f"{MOV_CR3} {enable(PCIDE)}", rdx=modes.TABLES | 1)
    assert event == Event(13, 11, error_code=0)


INVPCID = "660f388217"  # invpcid rdx, [rdi]


@everywhere
@pytest.mark.parametrize(
    ("kind", "pcid", "linear", "is_refused"),
    [
        (0, 1, LOG, False),
        (1, 0xFFF, 0, False),
        (2, 0, 0, False),
        (3, 0, 0, False),
        (4, 0, 0, True),
        (1 << 40, 0, 0, True),
        (0, 1, 1 << 60, True),  # not canonical
        (1, 0x1000, 0, True),  # reserved bits of the descriptor
        (2, 1 << 63, 0, True),
    ],
)
def test_invpcid(name: str, kind: int, pcid: int, linear: int, is_refused: bool) -> None:
    lab = Laboratory(name, "long")
    lab.memory.write(LOG, pcid.to_bytes(8, "little") + linear.to_bytes(8, "little"))
    event = lab.run(f"{enable(PCIDE)} {INVPCID} {UD2}", rdi=LOG, rdx=kind)
    assert event == (Event(13, SIZE, error_code=0) if is_refused else Event(6, SIZE + 5))


@everywhere
def test_invpcid_is_for_cpl_0(name: str) -> None:
    lab = Laboratory(name, "long", 3)
    assert lab.run(INVPCID, rdi=LOG, rdx=2) == Event(13, 0, error_code=0)


@everywhere
def test_invpcid_wants_pcid_0_without_pcide(name: str) -> None:
    lab = Laboratory(name, "long")
    lab.memory.write(LOG, (1).to_bytes(8, "little"))
    assert lab.run(INVPCID, rdi=LOG, rdx=1) == Event(13, 0, error_code=0)


@everywhere
@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_invpcid_drops_what_was_known(name: str, kind: int) -> None:
    """A page is read, its entry changed, and read again after INVPCID."""
    lab = Laboratory(name, "long")
    entry = modes.TABLES + 0x3000 + 8 * (LOG >> 12)
    lab.memory.write(LOG, (0x11).to_bytes(4, "little"))
    lab.memory.write(LOG + 0x2000, (0x22).to_bytes(4, "little"))
    lab.memory.write(LOG + 0x1000, bytes(8) + LOG.to_bytes(8, "little"))
    change = "8b0e c7 00 07a00400 660f388217 8b1e"  # mov ecx,[rsi]; entry; invpcid; mov ebx,[rsi]
    code = f"{enable(PCIDE)} b8{entry.to_bytes(4, 'little').hex()} {change} {HLT}"
    assert lab.run(code, rsi=LOG, rdi=LOG + 0x1000, rdx=kind) is None
    assert (lab.get("rcx"), lab.get("rbx")) == (0x11, 0x22)


# -- five levels ---------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize(
    ("mode", "linear", "is_canonical"),
    [
        ("long", 0x00007FFFFFFFFFF8, True),
        ("long", 0x0000800000000000, False),
        ("long 5-level", 0x0000800000000000, True),
        ("long 5-level", 0x00FFFFFFFFFFFFF8, True),
        ("long 5-level", 0x0100000000000000, False),
        ("long 5-level", 0xFF00000000000000, True),
        ("long", 0xFF00000000000000, False),
    ],
)
def test_what_is_canonical(name: str, mode: str, linear: int, is_canonical: bool) -> None:
    """#PF for what is only not mapped, #GP for what is no address."""
    lab = Laboratory(name, mode)
    event = lab.run("8b07", rdi=linear)
    wanted = Event(14, 0, error_code=0) if is_canonical else Event(13, 0, error_code=0)
    assert event == wanted


@everywhere
@pytest.mark.parametrize("mode", LONG)
def test_la57_cannot_be_changed_in_long_mode(name: str, mode: str) -> None:
    lab = Laboratory(name, mode)
    toggle = f"0f20e0 35{(1 << LA57).to_bytes(4, 'little').hex()} 0f22e0"  # xor eax
    assert lab.run(toggle) == Event(13, 8, error_code=0)
